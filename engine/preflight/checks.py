"""The checks before a run: on real batches, through the run's own feed, backend and optimiser; nothing they do is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from contracts.preflight import Estimate, Finding
from contracts.run import RunSpec
from engine.beacon import collective, mark
from engine.feeding import Drawn
from engine.memory import is_out_of_memory, peak_bytes
from engine.preflight.batches import digested, initial_loss, labels, rank_batches, unusable
from engine.preflight.learning import (
    FALL,
    FEWEST_STEPS,
    LESSON_SECONDS,
    MOST_STEPS,
    PAIRED,
    frozen_parameters,
    gradients,
    one_batch,
    optimiser,
    schedule,
)
from engine.preflight.lesson import Lesson
from engine.preflight.outputs import saved_weights, teacher
from engine.preflight.rehearsal import Rehearsal, num_bytes

Tell = Callable[[Finding | Estimate], None]

# Whole steps of the feed that are compared with the stream.
WATCHED_STEPS = 2
# Micro-batches of each rank whose losses and labels are looked at.
LOOKED_AT = 3
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
        repeated = lesson.repeat(fewest=FEWEST_STEPS, most=MOST_STEPS, seconds=LESSON_SECONDS, fall=FALL, paired=PAIRED)
    except Exception as error:
        if is_out_of_memory(error):
            return "one process cannot hold the objective and its optimiser beside those of the run"
        raise
    checks: dict[str, Callable[[], Finding]] = {
        "gradients": lambda: gradients(lesson),
        "optimiser": lambda: optimiser(lesson),
        "frozen parameters": lambda: frozen_parameters(lesson),
        "one batch": lambda: one_batch(repeated, spec.settings["train"]["learning_rate"]),
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
