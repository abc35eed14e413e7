"""Whether what is computed depends on what it should: saved weights compute what was trained, a teacher hears its input."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.preflight import Finding
from contracts.records import Records
from contracts.workload import Arrays
from engine.feeding import Batch, moved
from engine.loop import Loop
from engine.parts import load_weights
from engine.preflight.lesson import Lesson
from engine.preflight.rehearsal import Asked
from engine.torch_runtime import torch_run
from engine.weights import rebuilt, save_weights

# Saved weights: records that are computed twice, and how far outputs (of their range) and metrics may differ.
NUM_RECORDS, OUTPUT_TOLERANCE, METRIC_TOLERANCE = 4, 1e-3, 2e-3


def saved_weights(lesson: Lesson, folder: Path) -> Finding:
    """Whether what is saved, loaded into a fresh objective, computes what was trained."""
    name, loop = "saved weights", lesson.loop
    split = loop.validator.records if len(loop.validator.records) else loop.records
    records = split.take(range(min(NUM_RECORDS, len(split))))
    weights = loop.backend.whole(loop.average.parts)
    load_weights(loop.backend.objective, weights)
    load_weights(loop.validator.objective, weights)
    try:
        save_weights(loop.validator.learnt(), folder / "weights.safetensors")
        loaded = _fresh(loop, folder / "weights.safetensors")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trained, found = _computed(loop, loop.backend.objective, records), _computed(loop, loaded, records)
    remedy = "give the layer eval(), and let everything that trains or changes be a parameter or a persistent buffer"
    if (far := _distance(trained[0], found[0])) > OUTPUT_TOLERANCE:
        reason = f"loaded weights give outputs that differ by {far:.2g} of their range on {len(records)} records"
        cause = (
            "dropout is still on, or something that changes in training is not saved (a non-persistent buffer, an attribute)"
        )
        return Finding(name, "failed", reason, cause, remedy)
    for metric, value in trained[1].items():
        if not _alike_scored(value, again := found[1].get(metric, math.nan)):
            reason = f"{metric} is {again:.4g} with loaded weights, {value:.4g} before"
            cause = "equal outputs are scored differently: something is drawn at random, or kept from the scoring before"
            return Finding(name, "failed", reason, cause, "let measure and score depend on what they are given alone")
    return Finding(name, "passed", f"loaded again, they give the same outputs and metrics on {len(records)} records")


def _fresh(loop: Loop, path: Path) -> nn.Module:
    """A new objective with saved weights, as the later stages make it; whatever is drawn in building comes out differently."""
    torch.manual_seed(loop.train.seed + 1)
    return rebuilt(loop.workload, loop.settings, loop.spec.facts, path).to(loop.backend.device)


def _computed(loop: Loop, objective: nn.Module, records: Records) -> tuple[list[Arrays], Mapping[str, float]]:
    """Every output of the graphs while records are measured, and the metrics."""
    run = torch_run(loop.workload.graphs(objective.eval(), loop.settings, loop.spec.facts), loop.backend.device)
    outputs: list[Arrays] = []

    def listening(graph: str, /, **arrays: np.ndarray) -> Arrays:
        outputs.append(run(graph, **arrays))
        return outputs[-1]

    measures = list(loop.workload.measure(listening, records, loop.settings, loop.spec.facts))
    return outputs, loop.workload.score(measures, loop.settings, loop.spec.facts).metrics


def _alike_scored(one: float, other: float) -> bool:
    """Whether two values of a metric are the same; one that is no number is like another that is none."""
    near = math.isclose(one, other, rel_tol=METRIC_TOLERANCE, abs_tol=METRIC_TOLERANCE)
    return near or (math.isnan(one) and math.isnan(other))


def _distance(one: Sequence[Arrays], other: Sequence[Arrays]) -> float:
    """The largest difference between two runs' outputs, as a share of the output's range; infinite where shapes differ."""
    if len(one) != len(other):
        return math.inf
    pairs = [(first[key], second[key]) for first, second in zip(one, other, strict=True) for key in first]
    return max((_apart(first, second) for first, second in pairs), default=0.0)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return math.inf
    one, other = one.astype(np.float64), other.astype(np.float64)
    differing = (one != other) & ~(np.isnan(one) & np.isnan(other))  # infinities and what is no number may be meant
    if not differing.any():
        return 0.0
    finite = one[np.isfinite(one)]
    far = float(np.abs(one[differing] - other[differing]).max())
    far /= max(float(np.ptp(finite)) if finite.size else 0.0, 1e-12)
    return math.inf if math.isnan(far) else far


def teacher(lesson: Lesson) -> Finding:
    """Whether the teacher says something else of other inputs, of each that it reads."""
    name, objective = "teacher", lesson.backend.objective
    ask = getattr(objective, "teacher", None)
    if ask is None:
        return Finding(name, "not applicable", "the objective has none")
    if len(lesson.batches) < 2:
        return Finding(name, "not applicable", "the run has a single micro-batch to compare")
    first, second = (moved(batch, lesson.backend.device) for batch in lesson.batches[:2])

    @torch.no_grad()
    def said(batch: Batch) -> list[torch.Tensor]:
        torch.manual_seed(0)
        with lesson.backend.autocast():
            return list(_tensors(ask(batch)))

    asked = Asked(first)
    answer = said(asked)
    if _same(answer, said(second)):
        cause = "it is fed a constant, its input is masked, or its output is normalised away"
        return Finding(
            name, "failed", "it says the same of two different batches", cause, "print what it is given and what it gives"
        )
    heard = [key for key in _exchangeable(first, second) if not _same(answer, said({**first, key: second[key]}))]
    told = f"it reacts to its input ({', '.join(heard) or 'several parts together'})"
    deaf = [key for key in _exchangeable(first, second) if key in asked.parts and key not in heard]
    if deaf and heard:
        reason = f"{told}, and says the same whatever {' or '.join(deaf)} is, which it reads"
        cause = "that input is masked or overwritten, or only its shape is used"
        return Finding(name, "warning", reason, cause, "follow it through the teacher, if it is to count")
    return Finding(name, "passed", told)


def _exchangeable(first: Batch, second: Batch) -> Iterator[str]:
    """The tensors that two batches have in the same shape and with other values."""
    for name, value in first.items():
        other = second.get(name)
        if not isinstance(value, torch.Tensor) or not isinstance(other, torch.Tensor):
            continue
        if value.shape == other.shape and not torch.equal(value, other):
            yield name


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_tensors, value))


def _same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        first.shape == second.shape and torch.allclose(first, second, rtol=1e-5, atol=1e-7)
        for first, second in zip(one, other, strict=True)
    )
