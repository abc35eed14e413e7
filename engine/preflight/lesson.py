"""A few steps on a fresh objective of its own, which may be spoiled: what it learns from, and what it leaves alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from contracts.plan import Plan
from contracts.run import RunSpec
from engine.beacon import mark
from engine.feeding import Batch, moved
from engine.normalization import statistics_paused
from engine.parts import what_trains
from engine.planning import largest_divisor
from engine.preflight.rehearsal import Asked, Rehearsal, labels_in
from engine.randomness import key

# Different micro-batches in it, and samples in each: few, because it has to fit beside the run itself.
NUM_BATCHES, NUM_SAMPLES = 3, 16
# A loss that changes by no more than this share of it is the same.
DEAF = 1e-5


@dataclass(frozen=True)
class Repeated:
    """What became of a batch that was taken again and again: its `losses`, the first and those after each step; by how much
    more than before learning the loss grows when samples have the rows of others in one tensor, by its name (nothing where
    that says nothing); and the tensors that are `unheard`, of which any sample's row will do: `spare` where nothing asks for them,
    or they have but one number a sample, which may tell who it is."""

    losses: tuple[float, ...]
    grown: Mapping[str, float] = field(default_factory=dict)
    unheard: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()

    def knows_samples(self, share: float) -> bool:
        """Whether samples are told apart, for at least this share of what was learnt, or of what is left to learn if that is less.
        What an output's bias learns is the same for all samples: in a cross-entropy it makes no difference whose they are."""
        wanted = share * min(self.losses[0] - self.losses[-1], abs(self.losses[-1]))
        return not self.grown or max(self.grown.values()) >= wanted


class Lesson:
    """The run's objective, optimiser and precision in one process, whatever the plan, and a few small batches.

    `absent` are the trainable parameters that have had no gradient so far, `silent` those whose gradient was zero wherever
    there was one, `frozen` what the others held at first. `before` is what `told_apart` gave when nothing was learnt yet.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.loop = Rehearsal(replace(spec, plan=alone(spec.plan, ghost_batch=spec.settings["train"]["ghost_batch"])))
        self.backend = self.loop.backend
        self.batches = [batch for _, batch in self.loop.ahead(NUM_BATCHES)]
        self.trained = what_trains(self.backend.objective)
        self.absent, self.silent = set(self.trained), set(self.trained)
        self.frozen = fingerprints(self.backend.objective)
        self.read: set[str] = set()
        self.before = self.told_apart()

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

    @torch.no_grad()
    def told_apart(self) -> dict[str, float]:
        """By how much the first batch's loss grows when of one of its tensors, by name, each sample has the row of the next.

        Empty where that says nothing: one sample, no labels, or a tensor whose rows are all alike.
        """
        batch, num = moved(self.batches[0], self.backend.device), self.loop.plan.micro_batch
        rows = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and value.ndim}
        rows = {name: value for name, value in rows.items() if len(value) == num}
        exchanged = {name: value.roll(1, 0) for name, value in rows.items()}
        alike = any(torch.equal(value, rows[name]) for name, value in exchanged.items())
        if num < 2 or alike or not (labels_in(self.batches[0], self.backend.objective) or (0, 0))[0]:
            return {}
        right = self._loss(asked := Asked(batch))
        self.read = asked.parts or set(rows)  # what takes a batch apart as a whole asks for nothing by name
        return {name: self._loss({**batch, name: value}) - right for name, value in exchanged.items()}

    def _loss(self, batch: Batch) -> float:
        """Of a batch on the device, with the dropout of the steps that repeat the first one."""
        mark("learning")
        torch.manual_seed(key(self.loop.train.seed, "lesson", -1))
        with statistics_paused(), self.backend.autocast():
            found = float(self.backend.forward(batch)["loss"])
        self.backend.forget()
        return found

    def repeat(self, *, fewest: int, most: int, seconds: float, fall: float, paired: float) -> Repeated:
        """The first batch taken again and again.

        It ends when its loss is no number, after `most` steps, when the time is over, or when the loss has fallen by the share
        `fall` in a multiple of `fewest` steps and the samples of the batch are told apart by all that is in it, for at least the share
        `paired` of that.
        """
        batch, end = self.batches[0], time.monotonic() + seconds
        losses = [self.take(batch, rate=1.0, number=-1)]
        while math.isfinite(losses[-1]) and len(losses) <= most and time.monotonic() < end:
            due = len(losses) > 1 and (len(losses) - 1) % fewest == 0
            if due and has_fallen(losses, fall):
                found = self._repeated(losses)
                if found.knows_samples(paired) and not found.unheard:
                    return found
            losses.append(self.take(batch, rate=1.0, number=-1))
        return self._repeated(losses)

    def _repeated(self, losses: Sequence[float]) -> Repeated:
        now = self.told_apart()
        # Differences to other batches, and what a batch's own loss is made of, are in both.
        grown = {name: value - self.before[name] for name, value in now.items() if name in self.before}
        unheard = [name for name, value in now.items() if abs(value) <= DEAF * abs(losses[-1])]
        spare = [name for name in unheard if name not in self.read or self.batches[0][name].ndim == 1]
        return Repeated(tuple(losses), grown, tuple(name for name in unheard if name not in spare), tuple(spare))

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
