"""What runs in every rank of a trial: `python -m engine.stopwatch SPEC.json STEPS WARMUP`, alone or under torchrun."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from contracts.files import write_json
from contracts.plan import Plan
from contracts.run import RunSpec
from engine import beacon
from engine.beacon import READING, WAITING_FOR_DATA, Beacon
from engine.loop import Loop, OutOfMemory, _StopRequest
from engine.memory import limited, peak_bytes
from engine.trial import PARTS
from engine.worker import run_rank

# The parts of a step (see engine/trial.py), by the marks that the loop sets on its way.
PART_OF = {
    WAITING_FOR_DATA: "data",
    READING: "data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "averaging": "optimizer",
    "exchange": "sync",
}


def time_steps(spec: RunSpec, steps: int, warmup: int) -> None:
    """What this rank measures goes to measured-<rank>.json of the run's folder."""
    rank, output = int(os.environ.get("RANK", "0")), Path(spec.output)
    stopwatch = Stopwatch.start(output / "beacons", rank)
    write_json(output / f"measured-{rank}.json", _measure(spec, stopwatch, steps, warmup))


def _measure(spec: RunSpec, stopwatch: Stopwatch, steps: int, warmup: int) -> dict[str, Any]:
    """The seconds of each timed step and of its parts on this rank, and its peak of memory."""
    torch.set_num_threads(spec.plan.threads)
    before = warmup + _buffered_steps(spec.plan)
    loop = _TimedLoop(spec, num_steps=before + steps)
    stopwatch.cuda = loop.backend.device.type == "cuda"
    with limited(loop.backend.device):
        laps = [stopwatch.time(loop) for _ in range(before + steps)][before:]
    peak = peak_bytes(loop.backend.device)
    with beacon.collective("leaving the group"):
        loop.backend.close()
    parts = {name: [lap.get(name, 0.0) for _, lap in laps] for name in PARTS}
    return {"seconds": [seconds for seconds, _ in laps], "parts": parts, "peak_bytes": peak}


def _buffered_steps(plan: Plan) -> int:
    """How many steps the batches last that loader processes prepare beforehand; only after them is their speed seen."""
    return -(-plan.workers * plan.prefetch // plan.accumulation)


class _TimedLoop(Loop):
    """The loop, made to take steps one by one; where memory runs out it gives up."""

    def __init__(self, spec: RunSpec, *, num_steps: int) -> None:
        super().__init__(spec)
        epochs = num_steps * self.train.global_batch / len(self.records)
        self.stream = replace(self.stream, epochs=max(self.stream.epochs, epochs))
        self.journal, self._stop = None, _StopRequest()
        self._open_feed()

    def step(self) -> None:
        """One optimiser step, its wait for data included."""
        self._step()

    def _open_feed(self) -> None:
        super()._open_feed()
        self._careful_until = (
            self.standing.step + 1
        )  # on GPUs the first steps are slower; one tells whether all parameters learn

    def _divide_further(self) -> None:
        raise OutOfMemory(f"memory ran out with {self.plan.micro_batch} samples a micro-batch")


class Stopwatch(Beacon):
    """A beacon that also notes when each part of a step begins; on CUDA in the stream, so that no kernel waits for it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.cuda = False
        self._notes: list[tuple[str, Any]] = []

    @classmethod
    def start(cls, folder: Path, rank: int) -> Stopwatch:
        """Be this process's beacon from now on, in place of the plain one."""
        stopwatch = cls(beacon.place_of(folder, rank).with_suffix(".beacon"))
        beacon._beacon = stopwatch
        return stopwatch

    def mark(self, phase: str, *, step: int | None = None, keys: Sequence[str] | None = None) -> None:
        super().mark(phase, step=step, keys=keys)
        part = PART_OF.get(phase)
        if part and (not self._notes or self._notes[-1][0] != part):
            self._notes.append((part, self._moment()))

    def time(self, loop: _TimedLoop) -> tuple[float, dict[str, float]]:
        """The seconds that one step takes in all, and those of its parts."""
        self._notes.clear()
        began = time.perf_counter()
        loop.step()
        self._notes.append(("", self._moment()))
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        parts: dict[str, float] = {}
        for (part, start), (_, stop) in pairwise(self._notes):
            parts[part] = parts.get(part, 0.0) + self._between(start, stop)
        return seconds, parts

    def _moment(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, stop: Any) -> float:
        return start.elapsed_time(stop) / 1000 if self.cuda else stop - start


if __name__ == "__main__":
    work = partial(time_steps, steps=int(sys.argv[2]), warmup=int(sys.argv[3]))
    sys.exit(run_rank(sys.argv[1], work, memory_is_a_kind=True))
