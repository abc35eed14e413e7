"""Captions from the shipped graphs: greedy or beam search with a cache of keys and values, the same every time. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from contracts.workload import Arrays, Run
from workloads.captioning.seeing import normalized


def describe(
    run: Run, images: np.ndarray, picture: Mapping[str, Any], *, end: int, longest: int, beams: int
) -> list[list[int]]:
    """Tokens of a caption for each picture, uint8 [batch, size, size, 3] RGB; with the end where it came before `longest`."""
    prefix = run("encoder", pixels=normalized(images, picture))["prefix"]
    return go_on(run, prefix, end=end, longest=longest, beams=beams)


def go_on(run: Run, prefix: np.ndarray, *, end: int, longest: int, beams: int) -> list[list[int]]:
    """The same where the prefix [batch, tokens, width] is there already."""
    return (
        greedy(run, prefix, end=end, longest=longest)
        if beams == 1
        else beam(run, prefix, end=end, longest=longest, beams=beams)
    )


def greedy(run: Run, prefix: np.ndarray, *, end: int, longest: int) -> list[list[int]]:
    """The likeliest next token again and again, for all rows together until each has ended."""
    captions: list[list[int]] = [[] for _ in prefix]
    state = run("prefill", prefix=prefix)
    for position in range(longest):
        tokens = state.pop("logits").argmax(-1)
        for caption, token in zip(captions, tokens.tolist(), strict=True):
            if not caption or caption[-1] != end:
                caption.append(token)
        if all(caption[-1] == end for caption in captions) or position == longest - 1:
            break
        state = run("decode", ids=tokens[:, None], **past(state))
    return captions


def past(state: Arrays) -> Arrays:
    """What a call gave to be remembered, named as the next call takes it."""
    return {name.replace("present", "past", 1): value for name, value in state.items() if name.startswith("present")}


def beam(run: Run, prefix: np.ndarray, *, end: int, longest: int, beams: int) -> list[list[int]]:
    """The caption with the greatest mean log-probability of its tokens among `beams` that are followed at once, until as many have
    ended: what `generate` of transformers says with early_stopping. Of a row that is done nothing counts any more, however long
    the others go on."""
    batch = len(prefix)
    state = run("prefill", prefix=np.repeat(prefix, beams, axis=0))
    scores = np.full((batch, beams), -np.inf, np.float64)
    scores[:, 0] = 0.0  # all beams begin alike: only one of them may branch in the first step
    paths = np.zeros((batch, beams, 0), np.int64)
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]
    for position in range(longest):
        reached = scores[..., None] + _log_softmax(state.pop("logits")).reshape(batch, beams, -1)
        origins, tokens, scores = _best(reached, 2 * beams)
        paths = np.concatenate([np.take_along_axis(paths, origins[..., None], axis=1), tokens[..., None]], axis=-1)
        kept = _kept(finished, paths, tokens, scores, end=end, beams=beams, length=position + 1)
        paths, scores = (
            np.take_along_axis(value, kept[(...,) + (None,) * (value.ndim - 2)], axis=1) for value in (paths, scores)
        )
        origins, tokens = (np.take_along_axis(value, kept, axis=1) for value in (origins, tokens))
        if position == longest - 1 or all(len(found) >= beams for found in finished):
            break
        rows = (np.arange(batch)[:, None] * beams + origins).reshape(-1)
        state = run("decode", ids=tokens.reshape(-1, 1), **{name: value[rows] for name, value in past(state).items()})
    return [_winner(found, paths[row], scores[row], beams=beams) for row, found in enumerate(finished)]


def _best(reached: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `num` best continuations of each row: the beams they come from, their tokens and their scores, best first."""
    flat = reached.reshape(len(reached), -1)
    order = np.argsort(-flat, axis=1, kind="stable")[:, :num]
    return order // reached.shape[-1], order % reached.shape[-1], np.take_along_axis(flat, order, axis=1)


def _kept(
    finished: list[list[tuple[float, list[int]]]],
    paths: np.ndarray,
    tokens: np.ndarray,
    scores: np.ndarray,
    *,
    end: int,
    beams: int,
    length: int,
) -> np.ndarray:
    """Set aside what ended among the best `beams`, and give for each row the continuations that go on."""
    kept = np.zeros((len(paths), beams), np.int64)
    for row, found in enumerate(finished):
        kept[row] = np.flatnonzero(tokens[row] != end)[:beams]
        if len(found) < beams:
            ended = [place for place in range(beams) if tokens[row, place] == end and np.isfinite(scores[row, place])]
            found += [(scores[row, place] / length, paths[row, place].tolist()) for place in ended]
    return kept


def _winner(found: list[tuple[float, list[int]]], paths: np.ndarray, scores: np.ndarray, *, beams: int) -> list[int]:
    going_on = [(scores[place] / paths.shape[-1], paths[place].tolist()) for place in range(len(paths))]
    return max(found if len(found) >= beams else found + going_on, key=lambda one: one[0])[1]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
