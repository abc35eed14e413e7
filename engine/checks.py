"""The checks before a run: on real batches, through the run's own feed, backend and optimiser; nothing they do is kept."""

from __future__ import annotations

import hashlib
import itertools
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.errors import SlipwayError
from contracts.preflight import Estimate, Finding
from contracts.records import Records
from contracts.run import RunSpec
from contracts.workload import Arrays, Expected
from engine.beacon import collective, mark
from engine.feeding import Batch, Drawn, moved
from engine.lesson import Lesson, has_fallen
from engine.loop import Loop
from engine.memory import is_out_of_memory, peak_bytes
from engine.parts import load_weights
from engine.rehearsal import Look, Rehearsal, num_bytes
from engine.stream import Sample, Stream
from engine.torch_runtime import torch_run
from engine.weights import rebuilt, save_weights

Tell = Callable[[Finding | Estimate], None]

# Whole steps of the feed that are compared with the stream, and samples of the first epoch that are only counted.
WATCHED_STEPS, COUNTED_SAMPLES = 2, 200_000
# Micro-batches of each rank whose losses and labels are looked at.
LOOKED_AT = 3
# How near the initial loss must be to what the objective expects, as a share of it.
NEAR = 0.25
# One batch counts as learnt when its loss has fallen by this share; a lesson of fewer steps says nothing.
FALL, FEWEST_STEPS, MOST_STEPS, LESSON_SECONDS = 0.1, 5, 40, 8.0
# Saved weights: records that are computed twice, and how far outputs (of their range) and metrics may differ.
NUM_RECORDS, OUTPUT_TOLERANCE, METRIC_TOLERANCE = 4, 1e-3, 2e-3
LESSONS = ("gradients", "optimiser", "frozen parameters", "one batch", "saved weights", "teacher")


def check(spec: RunSpec, *, tell: Tell, shortest: float = 0.0) -> None:
    """Make all checks of a run in the ranks it will have; what they find is told on rank 0.

    A run that takes less than `shortest` seconds is measured and left at that.
    """
    torch.set_num_threads(spec.plan.threads)
    loop = Rehearsal(spec)
    batches = loop.ahead(WATCHED_STEPS * spec.plan.accumulation)
    say = tell if loop.backend.rank == 0 else _nothing
    why_not = _together(loop, batches, say, shortest)
    if loop.backend.rank == 0:
        why_not = why_not or _alone(replace(spec, plan=loop.plan), say)
        for name in LESSONS if why_not else ():
            say(Finding(name, "not applicable", f"not looked at: {why_not}"))
    with collective("leaving the group"):
        loop.backend.close()


def _nothing(found: Finding | Estimate) -> None:
    """Ranks other than 0 have nothing to say."""


def _together(loop: Rehearsal, batches: Sequence[Drawn], say: Tell, shortest: float) -> str:
    """What all ranks check together; the reason, if there is one, why the rest is not worth while."""
    backend = loop.backend
    shares = backend.gather([digested(samples, batch) for samples, batch in batches])
    looks = backend.gather(loop.looks(batches[:LOOKED_AT]))
    why_not = ""
    if shares is not None and looks is not None:
        say(guarded("rank batches", lambda: rank_batches(loop, shares)))
        seen = [look for rank in looks for look in rank]
        say(guarded("labels", lambda: labels(seen)))
        say(guarded("initial loss", lambda: initial_loss(seen, backend.objective)))
        why_not = unusable(seen)
    if why_not := backend.broadcast(why_not):
        return why_not
    step_seconds = loop.time_steps()
    if (now := loop.plan.micro_batch) != (before := loop.spec.plan.micro_batch):
        say(Finding("micro-batch", "passed", f"memory ran out with {before} samples; the run will make them {now}"))
    say(schedule(loop, loop.rate()))
    seconds = backend.broadcast(_estimated(loop, step_seconds, say))
    return f"the training takes about {seconds:.0f} s" if seconds < shortest else ""


def _estimated(loop: Rehearsal, step_seconds: float, say: Tell) -> float:
    """The seconds that the run will take (on rank 0), and all else that it will take told."""
    validation, checkpoint, weights = loop.time_validation(), loop.checkpoint_bytes(), num_bytes(loop.validator.learnt())
    device = loop.backend.device
    peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes(device)
    measured = loop.backend.gather((step_seconds, validation, peak))
    if measured is None:
        return 0.0
    steps, validations, peaks = zip(*measured, strict=True)
    estimate = Estimate(
        num_steps=loop.stream.num_steps,
        step_seconds=max(steps),
        num_validations=max(1, math.ceil(loop.stream.epochs)),
        validation_seconds=max(validations),
        memory=max(peaks) if device.type == "cuda" else sum(peaks),
        checkpoint=checkpoint,
        weights=weights,
    )
    say(estimate)
    return estimate.seconds


def _alone(spec: RunSpec, say: Tell) -> str:
    """What one rank checks with an objective of its own; the reason, if there is one, why it cannot."""
    try:
        lesson = Lesson(spec)
        lesson.warm_up()
        losses = lesson.repeat(fewest=FEWEST_STEPS, most=MOST_STEPS, seconds=LESSON_SECONDS, fall=FALL)
    except Exception as error:
        if is_out_of_memory(error):
            return "one process cannot hold the objective and its optimiser beside those of the run"
        raise
    checks: dict[str, Callable[[], Finding]] = {
        "gradients": lambda: gradients(lesson),
        "optimiser": lambda: optimiser(lesson),
        "frozen parameters": lambda: frozen_parameters(lesson),
        "one batch": lambda: one_batch(losses, spec.settings["train"]["learning_rate"]),
        "saved weights": lambda: saved_weights(lesson, Path(spec.output) / "saved"),
        "teacher": lambda: teacher(lesson),
    }
    for name, make in checks.items():
        mark(name)
        say(guarded(name, make))
    return ""


def guarded(name: str, make: Callable[[], Finding]) -> Finding:
    """What a check finds; one that breaks has failed, and stops no other."""
    try:
        return make()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return Finding(
            name, "failed", why, "the run would break in the same way, or the check has a fault", "mend what it names"
        )


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
    return Finding(name, "passed", f"{told}: {counting:,} of {num:,} in {len(looks)} micro-batches")


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


def schedule(loop: Loop, rate: float) -> Finding:
    """Whether the learning rate ends where it should: `rate` is the share of it that the last step really used."""
    name = "schedule"
    steps, final = loop.stream.num_steps, loop.train.final_learning_rate
    warmup = loop.train.warmup_epochs * len(loop.records) / loop.train.global_batch
    if steps == 1:
        return Finding(name, "not applicable", "the run has a single step")
    if warmup >= steps - 1:
        reason = (
            f"the warm-up takes {warmup:.0f} steps, the run has {steps}: the last one has {rate:.2%} of the learning rate"
        )
        cause = f"train.warmup_epochs {loop.train.warmup_epochs:g} is not less than train.epochs {loop.train.epochs:g}"
        return Finding(name, "failed", reason, cause, "lower train.warmup_epochs, or train for longer")
    if abs(rate - final) > 1e-3 + 0.01 * final:
        reason = f"the last of {steps} steps has {rate:.2%} of the learning rate, not {final:.2%}"
        cause = "the schedule counts other steps than the run makes (those of one rank, or micro-batches)"
        return Finding(name, "failed", reason, cause, "let it depend on the optimiser's step alone")
    return Finding(name, "passed", f"{final:.2%} of the learning rate in the last of {steps} steps, warm-up {warmup:.0f}")


def gradients(lesson: Lesson) -> Finding:
    """Whether everything that trains is reached by the loss."""
    name = "gradients"
    if lesson.absent:
        reason = f"none for {_some(sorted(lesson.absent))} of {len(lesson.trained)} trainable parameters"
        cause = "the loss does not depend on them: unused, detached, or used under no_grad"
        return Finding(name, "failed", reason, cause, "use them in the forward, or freeze them with requires_grad_(False)")
    if lesson.silent:
        reason = f"zero in every step for {_some(sorted(lesson.silent))} of {len(lesson.trained)} trainable parameters"
        cause = "what they compute is multiplied by zero, masked or clamped away"
        return Finding(name, "failed", reason, cause, "look at what follows them in the forward")
    return Finding(name, "passed", f"all {len(lesson.trained)} trainable parameters get one")


def optimiser(lesson: Lesson) -> Finding:
    """Whether the optimiser has everything that trains."""
    name = "optimiser"
    if lost := lesson.left_out():
        reason = f"it does not have {_some(lost)} of {len(lesson.trained)} trainable parameters"
        cause = "Workload.optimizer chooses by name or kind and leaves them out"
        return Finding(name, "failed", reason, cause, "put them into a group, or freeze them with requires_grad_(False)")
    return Finding(name, "passed", f"it has all {len(lesson.trained)} trainable parameters")


def frozen_parameters(lesson: Lesson) -> Finding:
    """Whether what is frozen stays as it is."""
    name = "frozen parameters"
    if not lesson.frozen:
        return Finding(name, "not applicable", "the objective has none")
    if moved := lesson.moved():
        reason = f"{_some(moved)} of {len(lesson.frozen)} changed in training"
        cause = "the forward, or an optimiser, writes to them"
        return Finding(
            name, "failed", reason, cause, "make it a buffer if it is to change; otherwise look for in-place operations"
        )
    return Finding(name, "passed", f"{len(lesson.frozen)} stayed as they were")


def one_batch(losses: Sequence[float], learning_rate: float) -> Finding:
    """Whether the losses of a batch that was taken again and again fell."""
    name = "one batch"
    told = f"its loss went from {losses[0]:.4g} to {losses[-1]:.4g} in {_steps(len(losses) - 1)}"
    if has_fallen(losses, FALL):
        return Finding(name, "passed", told)
    if math.isfinite(losses[-1]) and (len(losses) <= FEWEST_STEPS or (losses[-1] < losses[0] and len(losses) <= MOST_STEPS)):
        return Finding(name, "not applicable", f"{told}: more do not fit into {LESSON_SECONDS:.0f} s")
    if not math.isfinite(losses[-1]):
        cause = f"train.learning_rate {learning_rate:g} is too high, or an operation overflows"
        return Finding(
            name, "failed", told, cause, "lower train.learning_rate or train.clip_norm, or set plan.precision to fp32"
        )
    cause = f"train.learning_rate {learning_rate:g} is far too low or too high, the loss has the wrong sign, or labels are random"
    return Finding(name, "failed", told, cause, "try ten times more and less; look at one batch with its labels")


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
    """Whether the teacher says something else of other inputs."""
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

    answer = said(first)
    if _same(answer, said(second)):
        cause = "it is fed a constant, its input is masked, or its output is normalised away"
        return Finding(
            name, "failed", "it says the same of two different batches", cause, "print what it is given and what it gives"
        )
    heard = [key for key in _exchangeable(first, second) if not _same(answer, said({**first, key: second[key]}))]
    return Finding(name, "passed", f"it reacts to its input ({', '.join(heard) or 'several parts together'})")


def _exchangeable(first: Batch, second: Batch) -> Iterator[str]:
    """The tensors that two batches have in the same shape and with other values."""
    for name, value in first.items():
        other = second.get(name)
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor) and value.shape == other.shape:
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


def _some(names: Sequence[str]) -> str:
    """The first few of many names, and how many there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _steps(number: int) -> str:
    return f"{number} step" + ("" if number == 1 else "s")
