"""Ranks with a fault planted in one of them: `python -m tests.engine.planted SPEC.json`, alone or under torchrun.

The environment variable PLANTED names the fault. With `--launch` it is the launcher of such ranks, in a process of its own.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracts.run import RunSpec
from engine import beacon, launch, worker

GUILTY = 1
FROM_PROGRESS = 0.2  # the share of the run after which a record is bad
SLOW_SECONDS = 0.06  # a micro-batch, of which a step has four
LARGEST_BATCH, LARGEST_PICTURES = 2, 1
FAILING_CALL = 8  # the second micro-batch of step 3, where a step has two


def hang() -> None:
    """A record that is never read to its end."""
    _plant_in_reading(lambda: time.sleep(3600))


def error() -> None:
    """A record that cannot be read."""

    def fail() -> None:
        raise LookupError("the picture is gone")

    _plant_in_reading(fail)


def _plant_in_reading(fault: Callable[[], None]) -> None:
    from workloads.segmentation.dataset import SegmentationDataset

    read = SegmentationDataset.item

    def item(self: Any, index: int, rng: Any, *, progress: float) -> Any:
        if progress >= FROM_PROGRESS:
            fault()
        return read(self, index, rng, progress=progress)

    SegmentationDataset.item = item


def memory() -> None:
    """Too little memory: for micro-batches above LARGEST_BATCH from the call FAILING_CALL on, and for as good as every validation."""
    from workloads.segmentation.graph import CameraGraph
    from workloads.segmentation.objective import SegmentationObjective

    _fail_above(SegmentationObjective, lambda batch: len(batch["images"]), LARGEST_BATCH, from_call=FAILING_CALL)
    _fail_above(CameraGraph, len, LARGEST_PICTURES, from_call=1)


def _fail_above(module: Any, size: Callable[[Any], int], largest: int, *, from_call: int) -> None:
    import torch

    compute, calls = module.forward, [0]

    def forward(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] >= from_call and size(batch) > largest:
            raise torch.OutOfMemoryError("planted: no room")
        return compute(self, batch)

    module.forward = forward


def slow() -> None:
    """Steps long enough to be met by somebody who looks on."""
    from workloads.segmentation.objective import SegmentationObjective

    compute = SegmentationObjective.forward

    def forward(self: Any, batch: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return compute(self, batch)

    SegmentationObjective.forward = forward


def die() -> None:
    """Killed as soon as it has said its first word."""
    beacon.start(Path(RunSpec.read(Path(sys.argv[-1])).output) / "beacons", 0)
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {one.__name__: one for one in (hang, error, memory, slow, die)}
# The others are planted in the rank GUILTY alone.
EVERYWHERE = ("slow", "die")


def main() -> int:
    if sys.argv[1] == "--launch":
        from benchmarks.soak import launch_as_told

        launch.command = functools.partial(launch.command, module="tests.engine.planted")
        return launch_as_told(Path(sys.argv[2]))
    fault = os.environ["PLANTED"]
    if fault in EVERYWHERE or int(os.environ["RANK"]) == GUILTY:
        FAULTS[fault]()
    return worker.main(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
