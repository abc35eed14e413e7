"""What the ranks are fed: each sample once, no two records alike, labels that count, a loss that begins where it must."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from contracts.errors import SlipwayError
from contracts.preflight import Finding
from contracts.workload import Expected
from engine.feeding import Batch
from engine.loop import Loop
from engine.preflight.rehearsal import Look
from engine.stream import Sample, Stream

# Samples of the first epoch that are only counted.
COUNTED_SAMPLES = 200_000
# Where of so large a share of the samples no label counts, it is said.
MANY = 1 / 3
# How near the initial loss must be to what the objective expects, as a share of it.
NEAR = 0.25


@dataclass(frozen=True)
class Digest:
    """A sample as a rank got it: which record, drawn how often before, and a hash of its tensors."""

    draw: int
    index: int
    hash: str


def digested(samples: Sequence[Sample], batch: Batch) -> list[Digest]:
    """One for each sample of a micro-batch: of its row of the tensors that have a row for each, or of the whole batch."""
    tensors = [value.detach().cpu() for value in batch.values() if isinstance(value, torch.Tensor)]
    rows = [value for value in tensors if value.ndim and len(value) == len(samples)]
    hashes = [_hash([value[place] for value in rows] or tensors) for place in range(len(samples))]
    return [Digest(one.draw, one.index, found) for one, found in zip(samples, hashes, strict=True)]


def _hash(tensors: Sequence[torch.Tensor]) -> str:
    found = hashlib.blake2b(digest_size=12)
    for value in tensors:
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def rank_batches(loop: Loop, shares: Sequence[Sequence[Sequence[Digest]]]) -> Finding:
    """Whether the ranks together got what the stream says, each sample once, and different tensors for different records.

    `shares`: for each rank, for each micro-batch, its samples.
    """
    name = "rank batches"
    per_step = loop.plan.accumulation
    num_steps = min(len(share) for share in shares) // per_step
    for step in range(num_steps):
        got = Counter(
            (one.draw, one.index)
            for share in shares
            for micro in share[step * per_step : (step + 1) * per_step]
            for one in micro
        )
        wanted = Counter((one.draw, one.index) for one in loop.stream.batch(step))
        twice, lost = got - wanted, wanted - got
        if twice or lost:
            reason = (
                f"of the {wanted.total()} samples of step {step}, the {len(shares)} ranks together read {twice.total()} twice or out "
                f"of turn, and {lost.total()} not at all"
            )
            return Finding(
                name, "failed", reason, "ranks are fed the same share", "every rank must read its own Stream.share"
            )
    if fault := _uneven(loop.stream, ranks=len(shares), micro_batch=loop.plan.micro_batch):
        return Finding(name, "failed", fault, "the stream is not divided evenly", "see Stream.share")
    if fault := _alike(loop, [one for share in shares for micro in share for one in micro]):
        cause = "the dataset does not look at the index it is asked for, or reads one file for all"
        return Finding(name, "failed", fault, cause, "look at Dataset.item and collate: print what two records give")
    return Finding(name, "passed", f"{num_steps} steps of {len(shares)} ranks: every sample once, and no two records alike")


def _uneven(stream: Stream, *, ranks: int, micro_batch: int) -> str:
    """What is wrong with the shares of the ranks over the first epoch, or the part of it that can be counted at once."""
    steps = min(stream.num_steps, COUNTED_SAMPLES // stream.global_batch, -(-stream.num_records // stream.global_batch))
    counts = np.zeros(stream.num_records, np.int64)
    for step, rank in itertools.product(range(steps), range(ranks)):
        for micro in stream.share(step, rank=rank, ranks=ranks, micro_batch=micro_batch):
            np.add.at(counts, [one.index for one in micro if one.epoch == 0], 1)
    drawn, over = min(stream.num_records, steps * stream.global_batch), counts - stream.draws.times(0)
    if over.max() > 0:
        return f"record {over.argmax()} is read {counts[over.argmax()]} times in the first epoch"
    return f"{drawn - counts.sum()} samples are never read in the first epoch" if counts.sum() != drawn else ""


def _alike(loop: Loop, digests: Sequence[Digest]) -> str:
    """Whether different records give the same tensors: those of the feed, and some again without augmentation."""
    fed = {one.index: one.hash for one in digests}
    dataset, plain = loop.dataset, {}
    for index in list(fed)[:8]:
        batch = dataset.collate([dataset.item(index, None, draw=0, progress=0.0)])
        plain[index] = _hash([value for value in batch.values() if isinstance(value, torch.Tensor)])
    for found, how in ((fed, "as they are fed"), (plain, "without augmentation")):
        num = len(set(found.values()))
        if len(found) > 1 and num <= len(found) / 2:
            return f"{len(found)} different records give only {num} different examples {how}"
    return ""


def labels(looks: Sequence[Look]) -> Finding:
    """Whether anything of the batches counts in the loss."""
    name = "labels"
    cause = "everything is masked: the labels' offset or padding is wrong, or the records have none"
    remedy = "look at the labels that Dataset.item gives for one record"
    if not looks:
        return Finding(name, "not applicable", "no micro-batch fitted into memory; the run will make them smaller")
    if sum(look.weight for look in looks) <= 0:
        return Finding(name, "failed", f"the weight of the loss is 0 in all {len(looks)} micro-batches", cause, remedy)
    counts = [look.labels for look in looks if look.labels is not None]
    if not counts:
        told = "the objective has no `supervised`, and the batch has no integer `labels`; its weight is not 0"
        return Finding(name, "not applicable", told)
    counting, num = map(sum, zip(*counts, strict=True))
    if not num:
        return Finding(name, "not applicable", f"there are none in {len(looks)} micro-batches, whose loss has a weight")
    told = f"{counting / num:.1%} of the labels count"
    if not counting:
        return Finding(name, "failed", f"{told} in {len(looks)} micro-batches, which have {num:,}", cause, remedy)
    told += f": {counting:,} of {num:,} in {len(looks)} micro-batches"
    none, every = map(sum, zip(*(look.without for look in looks), strict=True))
    if none < MANY * every:
        return Finding(name, "passed", told)
    what = "micro-batches" if every == len(looks) else "samples"
    reason, cause = (
        f"{told}; {none:,} of {every:,} {what} have none",
        "many records have no labels, or theirs are lost or masked",
    )
    return Finding(name, "warning", reason, cause, f"if that is not meant, {remedy}")


def unusable(looks: Sequence[Look]) -> str:
    """Why no step can be made with such losses, or nothing."""
    if not all(math.isfinite(look.loss) for look in looks):
        return "the loss is no number"
    return "the loss has no weight" if looks and sum(look.weight for look in looks) <= 0 else ""


def initial_loss(looks: Sequence[Look], objective: nn.Module) -> Finding:
    """Whether the loss begins where one that knows nothing must be."""
    name = "initial loss"
    if not looks:
        return Finding(name, "not applicable", "no micro-batch fitted into memory; the run will make them smaller")
    broken = [look.loss for look in looks if not math.isfinite(look.loss)]
    if broken:
        cause = "a division by zero, a logarithm of zero, labels out of range, or all of them masked"
        remedy = "torch.autograd.set_detect_anomaly(True) names the operation; look at the first batch"
        return Finding(name, "failed", f"{broken[0]} in {len(broken)} of {len(looks)} micro-batches", cause, remedy)
    known: Expected | None = getattr(objective, "expected_loss", None)
    if known is None or isinstance(known, str):
        why = known or "the objective has no `expected_loss` to compare it with"
        return Finding(name, "not applicable", f"it is {_mean(looks, 'loss'):.4g}; {why}")
    told = []
    for part, (least, most) in (known if isinstance(known, Mapping) else {"loss": (known, known)}).items():
        value, called = _mean(looks, part), "" if part == "loss" else f"{part} "
        span = f"{most:.4g}" if least == most else f"{least:.4g} to about {most:.4g}"
        if not least - NEAR * abs(least) <= value <= most + NEAR * abs(most):
            reason = f"{called}{value:.4g}, where an objective that knows nothing yet has {span}"
            cause = "a wrong sign, reduction or scale of the loss, labels that are shifted, or weights that begin too large"
            return Finding(name, "failed", reason, cause, "compute the loss of one record by hand")
        told.append(f"{called}{value:.4g}, expected {span}")
    return Finding(name, "passed", "; ".join(told))


def _mean(looks: Sequence[Look], part: str) -> float:
    """A part of the loss over all micro-batches."""
    if lacking := [look for look in looks if part not in look.parts]:
        raise SlipwayError(f"`expected_loss` names {part}, and the objective gives {', '.join(lacking[0].parts)}")
    return sum(look.parts[part] * look.weight for look in looks) / max(sum(look.weight for look in looks), 1e-12)
