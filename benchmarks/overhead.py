"""What the engine's loop costs over a bare one: `python -m benchmarks.overhead` writes benchmarks/results/overhead.json.

Segmentation as params.yaml has it, on one rank with one thread. After every step of the engine's loop a bare PyTorch loop in the
same process takes the same step on the same samples with a network, an optimiser and an average of its own. Compared is what one
turn of each loop takes, with all that the engine does between two steps (journal, progress, signs of life); turns with a
validation are left out. The processor's time for it is given too, which other programs disturb less than the clock's. In the end
both have learnt the same weights, or it is an error.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.conditions import load_now, write_result
from benchmarks.embedded import cpu_plan, demo_settings, prepare
from contracts.run import RunSpec
from engine.loop import Loop
from engine.randomness import generator
from engine.schedule import learning_rate_factor

BAR, TOLERANCE = 0.02, 1e-4
WARMUP_STEPS = 5
NUM_SCENES = 400


@dataclass(frozen=True)
class Moment:
    """A time, or the time between two: by the clock, and that of the processor for this thread. In seconds."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), time.thread_time())

    def __sub__(self, other: Moment) -> Moment:
        return Moment(self.clock - other.clock, self.processor - other.processor)


class Bare:
    """What one would write by hand: the network as it is built, torch's loader, one function for a step."""

    def __init__(self, loop: Loop) -> None:
        self.settings, self.stream, self.plan = loop.train, loop.stream, loop.plan
        torch.manual_seed(self.settings.seed)
        self.objective = loop.workload.build(loop.settings, loop.spec.facts, pretrained=True).train()
        self.optimizer = loop.workload.optimizer(self.objective, loop.settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = list(self.objective.parameters())
        self.average = [value.detach().clone() for value in self.parameters]
        self.warmup = self.settings.warmup_epochs * len(loop.records) / self.settings.global_batch
        self.dataset = loop.workload.dataset(loop.records, loop.settings, loop.spec.facts, training=True)
        samples = [one for step in range(self.stream.num_steps) for one in self.stream.batch(step)]
        collate: Any = self.dataset.collate
        self.batches = iter(
            DataLoader(_Items(self.dataset, samples, self.stream.seed), self.plan.micro_batch, collate_fn=collate)
        )

    def step(self, step: int) -> float:
        """One optimiser step; gives the loss."""
        settings = self.settings
        factor = learning_rate_factor(
            step, num_steps=self.stream.num_steps, warmup_steps=self.warmup, final=settings.final_learning_rate
        )
        total = 0.0
        for _ in range(self.plan.accumulation):
            loss = self.objective(next(self.batches))["loss"] / self.plan.accumulation
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm or float("inf"))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(settings.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.average, [value.detach() for value in self.parameters], 1 - decay)  # pyright: ignore
        return total


class _Items(torch.utils.data.Dataset[Any]):
    """The augmented samples of a run, in order."""

    def __init__(self, dataset: Any, samples: list[Any], seed: int) -> None:
        self.dataset, self.samples, self.seed = dataset, samples, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Any:
        one = self.samples[place]
        rng = generator(self.seed, "sample", one.draw, one.index)
        return self.dataset.item(one.index, rng, draw=one.draw, progress=one.progress)


class Paired(Loop):
    """The engine's loop, which after each of its turns lets the bare one take the same step."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.bare = Bare(self)
        self.turns: list[tuple[Moment, Moment]] = []
        self._turn_began = Moment.now()

    def _after_step(self, stop: bool) -> None:
        step = self.standing.step - 1
        super()._after_step(stop)
        ours, began = Moment.now() - self._turn_began, Moment.now()
        self.bare.step(step)
        theirs = Moment.now() - began
        if not self.stream.ends_epoch(step):
            self.turns.append((ours, theirs))
        self._turn_began = Moment.now()

    def differences(self) -> Iterator[float]:
        """How far the parameters of both are apart."""
        pairs = zip(self.backend.objective.parameters(), self.bare.objective.parameters(), strict=True)
        return (float((one - other).detach().abs().max()) for one, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=6)
    options = parser.parse_args()
    load = load_now()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        # Adam would turn differences in the last digit of a gradient near zero into whole steps.
        settings = demo_settings(epochs=options.epochs, optimizer="SGD", learning_rate=1e-5)
        plan = cpu_plan("single", ranks=1, micro_batch=settings.train.ghost_batch, global_batch=settings.train.global_batch)
        loop = Paired(prepare(Path(name), NUM_SCENES).spec("run", plan, settings))
        Path(loop.spec.output).mkdir()
        loop.run()
    apart = max(loop.differences())
    assert apart < TOLERANCE, f"the two loops have learnt different weights: {apart}"
    turns = loop.turns[WARMUP_STEPS:]
    overhead = median(ours.clock / theirs.clock for ours, theirs in turns) - 1
    seconds = {"engine": median(ours.clock for ours, _ in turns), "bare": median(theirs.clock for _, theirs in turns)}
    write_result(
        "overhead",
        bar=f"<= {BAR:.0%} of a bare step",
        met=overhead <= BAR,
        load=load,
        overhead_median=overhead,
        overhead_of_the_processors_time_median=median(ours.processor / theirs.processor for ours, theirs in turns) - 1,
        num_turns=len(turns),
        turn_seconds=seconds,
        largest_difference_of_weights=apart,
    )


if __name__ == "__main__":
    main()
