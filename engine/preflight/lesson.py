"""A few steps on a fresh objective of its own, which may be spoiled: what it learns from, and what it leaves alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from contracts.plan import Plan
from contracts.run import RunSpec
from engine.beacon import mark
from engine.feeding import Batch, moved
from engine.parts import what_trains
from engine.planning import largest_divisor
from engine.preflight.rehearsal import Rehearsal
from engine.randomness import key

# Different micro-batches in it, and samples in each: few, because it has to fit beside the run itself.
NUM_BATCHES, NUM_SAMPLES = 3, 16


class Lesson:
    """The run's objective, optimiser and precision in one process, whatever the plan, and a few small batches.

    `absent` are the trainable parameters that have had no gradient so far, `silent` those whose gradient was zero wherever
    there was one, `frozen` what the others held at first.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.loop = Rehearsal(replace(spec, plan=alone(spec.plan, ghost_batch=spec.settings["train"]["ghost_batch"])))
        self.backend = self.loop.backend
        self.batches = [batch for _, batch in self.loop.ahead(NUM_BATCHES)]
        self.trained = what_trains(self.backend.objective)
        self.absent, self.silent = set(self.trained), set(self.trained)
        self.frozen = fingerprints(self.backend.objective)

    def take(self, batch: Batch, *, rate: float, number: int) -> float:
        """One step at `rate` times the run's learning rate, and the loss before it; the same `number`, the same dropout."""
        mark("learning")
        torch.manual_seed(key(self.loop.train.seed, "lesson", number))
        with self.backend.accumulate(meet=True), self.backend.autocast():
            output = self.backend.forward(moved(batch, self.backend.device))
        self.backend.backward(output["loss"])
        self._note()
        self.backend.step(rate=rate, scale=1.0)
        self.loop.statistics.update(self.backend.sum(self.loop.statistics.seen()) / self.backend.ranks)
        self.loop.average.update()
        return float(output["loss"].detach())

    def _note(self) -> None:
        for name in list(self.silent):
            gradient = self.trained[name].grad
            if gradient is not None:
                self.absent.discard(name)
                if bool((gradient != 0).any()):
                    self.silent.discard(name)

    def warm_up(self) -> None:
        """A step on each of the batches, with a learning rate that rises to the run's own."""
        for number, batch in enumerate(self.batches):
            self.take(batch, rate=(number + 1) / (len(self.batches) + 1), number=number)

    def repeat(self, *, fewest: int, most: int, seconds: float, fall: float) -> list[float]:
        """The losses of the first batch taken again and again: the first and those after each step.

        It ends when they are no number, after `most` steps, when the time is over, or when the loss has fallen by the share
        `fall` in `fewest` steps or more.
        """
        batch, end = self.batches[0], time.monotonic() + seconds
        losses = [self.take(batch, rate=1.0, number=-1)]
        while math.isfinite(losses[-1]) and len(losses) <= most and time.monotonic() < end:
            if len(losses) > fewest and has_fallen(losses, fall):
                break
            losses.append(self.take(batch, rate=1.0, number=-1))
        return losses

    def left_out(self) -> list[str]:
        """The trainable parameters that the optimiser does not have."""
        held = {id(value) for value in self.backend.parameters}
        return [name for name, value in self.trained.items() if id(value) not in held]

    def moved(self) -> list[str]:
        """The frozen parameters that are not what they were."""
        now = fingerprints(self.backend.objective)
        return [name for name, before in self.frozen.items() if now[name] != before]


def alone(plan: Plan, *, ghost_batch: int) -> Plan:
    """The same plan for one process, with micro-batches of a few whole ghost batches."""
    ghosts = largest_divisor(plan.micro_batch // ghost_batch, at_most=NUM_SAMPLES // ghost_batch)
    micro_batch = ghosts * ghost_batch
    return replace(
        plan,
        backend="single",
        ranks=1,
        replicas=1,
        micro_batch=micro_batch,
        accumulation=plan.global_batch // micro_batch,
        workers=0,
        compile=False,
        offload="none",
    )


def has_fallen(losses: Sequence[float], share: float) -> bool:
    """Whether the last loss is below the first by this share of it."""
    return losses[0] - losses[-1] >= share * abs(losses[0]) > 0


def fingerprints(objective: nn.Module) -> Mapping[str, tuple[float, float]]:
    """Two sums over each frozen parameter: they change when a single element does."""
    frozen = {name: value.detach() for name, value in objective.named_parameters() if not value.requires_grad}
    return {name: (float(value.double().sum()), float(value.double().square().sum())) for name, value in frozen.items()}
