"""Whether what trains learns: the schedule, gradients, the optimiser, what is frozen, and a batch taken again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contracts.preflight import Finding
from engine.loop import Loop
from engine.preflight.lesson import Lesson, Repeated, has_fallen

# One batch counts as learnt when its loss has fallen by this share, and grows by the share PAIRED of that when its samples get
# what belongs to others (0.3 to 3 times the fall in the house's own workloads); a lesson of fewer steps says nothing.
FALL, FEWEST_STEPS, MOST_STEPS, LESSON_SECONDS = 0.1, 5, 40, 8.0
PAIRED = 0.05


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


def one_batch(found: Repeated, learning_rate: float) -> Finding:
    """Whether a batch that was taken again and again was learnt, sample by sample."""
    name, losses = "one batch", found.losses
    told = f"its loss went from {losses[0]:.4g} to {losses[-1]:.4g} in {_steps(len(losses) - 1)}"
    if has_fallen(losses, FALL):
        return _of_its_samples(found, told)
    if math.isfinite(losses[-1]) and (len(losses) <= FEWEST_STEPS or (losses[-1] < losses[0] and len(losses) <= MOST_STEPS)):
        return Finding(name, "not applicable", f"{told}: more do not fit into {LESSON_SECONDS:.0f} s")
    if not math.isfinite(losses[-1]):
        cause = f"train.learning_rate {learning_rate:g} is too high, or an operation overflows"
        return Finding(
            name, "failed", told, cause, "lower train.learning_rate or train.clip_norm, or set plan.precision to fp32"
        )
    cause = f"train.learning_rate {learning_rate:g} is far too low or too high, the loss has the wrong sign, or labels are random"
    return Finding(name, "failed", told, cause, "try ten times more and less; look at one batch with its labels")


def _of_its_samples(found: Repeated, told: str) -> Finding:
    """Whether a fallen loss has to do with whose labels and inputs they are."""
    name, short = "one batch", len(found.losses) <= MOST_STEPS
    same = f"{told}, and is the same whichever sample's {' or '.join(found.unheard or found.spare)} a sample is given"
    remedy = "follow it through the forward; what is not needed, collate may leave out"
    if found.unheard:
        cause = "it is masked, overwritten or not used, or the labels are read by what is to foretell them"
        return Finding(name, "failed", same, cause, remedy)
    if found.knows_samples(PAIRED):
        return Finding(name, "warning", same, "nothing reads it", remedy) if found.spare else Finding(name, "passed", told)
    most = max(found.grown.values())
    reason = f"{told}, of which {most:.2g} has to do with which input belongs to which label"
    if short:
        return Finding(name, "not applicable", f"{reason}: more steps do not fit into {LESSON_SECONDS:.0f} s")
    cause = (
        "what is learnt is the same for all samples (an output's bias), or the labels are read by what is to foretell them"
    )
    return Finding(name, "failed", reason, cause, "look at the learning rates of the layers and at what the forward reads")


def _some(names: Sequence[str]) -> str:
    """The first few of many names, and how many there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _steps(number: int) -> str:
    return f"{number} step" + ("" if number == 1 else "s")
