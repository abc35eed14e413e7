"""The loop, made to take steps one by one, anywhere on its schedule: for what is checked and timed before a run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from contracts.run import RunSpec
from engine.beacon import collective
from engine.feeding import Batch, Drawn, moved
from engine.loop import Loop
from engine.memory import is_out_of_memory, release
from engine.normalization import statistics_paused
from engine.randomness import key

TIMED_STEPS, TIMED_RECORDS = 4, 4
IGNORED = -100  # the label that torch's losses leave out


@dataclass(frozen=True)
class Look:
    """What an objective said of one micro-batch. `parts` are the loss and what it is made of; `labels` says how many count and
    how many there are, None where nobody knows; `without` how many of its samples have none that counts, and how many samples
    it has: one, the micro-batch itself, where nobody knows it of each."""

    parts: Mapping[str, float]
    weight: float
    labels: tuple[int, int] | None
    without: tuple[int, int] = (0, 1)

    @property
    def loss(self) -> float:
        return self.parts["loss"]

    @classmethod
    def at(cls, output: Mapping[str, torch.Tensor], batch: Batch, objective: nn.Module) -> Look:
        parts = {name: float(value) for name, value in output.items()}
        return cls(parts, parts.pop("weight", 1.0), labels_in(batch, objective), _without_labels(batch, objective))


def labels_in(batch: Batch, objective: nn.Module) -> tuple[int, int] | None:
    if count := getattr(objective, "supervised", None):
        return count(batch)
    given = batch.get("labels")
    if isinstance(given, torch.Tensor) and not (given.is_floating_point() or given.dtype == torch.bool):
        return int((given != IGNORED).sum()), given.numel()
    return None


def _without_labels(batch: Batch, objective: nn.Module) -> tuple[int, int]:
    """How many samples have no label that counts, and how many there are."""
    known, given = labels_in(batch, objective), batch.get("labels")
    if known is None or hasattr(objective, "supervised") or not isinstance(given, torch.Tensor) or not given.ndim:
        return int(known is not None and not known[0]), 1
    return int((given != IGNORED).reshape(len(given), -1).any(1).logical_not().sum()), len(given)


class Asked(dict[str, Any]):
    """A batch that remembers in `parts` which of them it was asked for."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.parts: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.parts.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.parts.add(name)
        return super().get(name, default)


class Rehearsal(Loop):
    """A run's own loop, without journal, checkpoints and signals."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.journal, self._stop = None, SimpleNamespace(asked=False)  # pyright: ignore[reportAttributeAccessIssue]
        self._open_feed()

    def ahead(self, count: int) -> list[Drawn]:
        """This rank's next micro-batches, which are still to come."""
        found = list(itertools.islice(self._batches, count))
        self._batches = itertools.chain(found, self._batches)
        return found

    @torch.no_grad()
    def looks(self, batches: Sequence[Drawn]) -> list[Look]:
        """What the objective says of some micro-batches before it has learnt anything; fewer where memory runs out."""
        found = []
        for number, (_, batch) in enumerate(batches):
            torch.manual_seed(key(self.train.seed, "look", number))
            try:
                with statistics_paused(), self.backend.autocast(), collective("exchange in the forward"):
                    output = self.backend.forward(moved(batch, self.backend.device))
            except Exception as error:
                if not (is_out_of_memory(error) and self.backend.divides):
                    raise
                break  # the loop will divide its micro-batches
            found.append(Look.at(output, batch, self.backend.objective))
        self.backend.forget()
        release(self.backend.device)
        return found

    def time_steps(self) -> float:
        """The median seconds of the first steps but one, after which the last step of the run is made, too."""
        last, seconds = self.stream.num_steps - 1, []
        for step in [*range(min(TIMED_STEPS, last)), last]:
            self.standing.step = step
            began = time.monotonic()
            self._step()
            seconds.append(time.monotonic() - began)
        return median(seconds[1:] or seconds)

    def rate(self) -> float:
        """The share of its learning rate that the optimiser used last."""
        return self.backend.optimizer.param_groups[0]["lr"] / self.backend.base_rates[0]

    def time_validation(self) -> float:
        """Seconds for the whole split, from two parts of it."""
        split, ranks = self.validator.records, self.backend.ranks
        weights = self.backend.whole(self.average.parts)

        def seconds(num: int) -> float:
            self.validator.records = split.take(range(min(len(split), num)))
            began = time.monotonic()
            self.validator.score(weights, self.backend)
            return time.monotonic() - began

        seconds(ranks)  # the first time, memory is taken and libraries are loaded
        few, more = ranks, ranks * (1 + TIMED_RECORDS)
        short, long = seconds(few), seconds(more)
        self.validator.records = split
        return short + max(0.0, long - short) / (more - few) * max(0, len(split) - few)

    def checkpoint_bytes(self) -> int:
        """The size of a checkpoint."""
        return num_bytes({**self.backend.state(), "average": self.average.state(self.backend)})


def num_bytes(value: Any) -> int:
    """Of all tensors in a nested state."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(num_bytes, value.values())) if isinstance(value, Mapping) else 0
