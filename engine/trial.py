"""Times real optimiser steps of a run, on real data: what planning, profiling and scaling go by. Nothing of it is kept.

This is the launcher's side; `engine/stopwatch.py` is what runs in the ranks.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median

from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.run import RunSpec
from engine.launch import LOG, errors_in, own_errors, ranks, wait

PARTS = ("data", "forward", "backward", "optimizer", "sync")


@dataclass(frozen=True)
class Trial:
    """What a step of a run costs. Times in seconds.

    `step_seconds`: each timed step on its slowest rank. `samples_per_second`: of all ranks together, in the median step.
    `breakdown`: the median over the steps of each of PARTS, mean of the ranks. "data" is waiting for a batch (or making it,
    where there are no loader processes) and moving it to the device; "sync" is reducing gradients and statistics and agreeing
    with the other ranks. An exchange that runs inside the backward or forward counts there: `ddp` on GPUs, `fsdp`,
    `deepspeed`. `peak_bytes`: the most memory of any rank, on GPUs what tensors took, on CPUs what was resident (without
    loader processes). `failed` says why there are no numbers; it is empty where there are.
    """

    step_seconds: tuple[float, ...] = ()
    samples_per_second: float = 0.0
    breakdown: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    failed: str = ""

    @property
    def seconds(self) -> float:
        """The median step; infinite where the trial failed."""
        return median(self.step_seconds) if self.step_seconds else float("inf")


def run_trial(spec: RunSpec, *, steps: int, warmup: int = 2) -> Trial:
    """Time `steps` optimiser steps of a run on its own ranks, after `warmup` steps and those that empty the loaders' buffers.

    Weights are built as for training; there is no validation, checkpoint or journal, and `spec.output` is not touched. What
    the ranks print is shown only when one of them crashes. Memory that runs out is no error but `Trial.failed`.

    Raises:
        Hung: when a rank stood still for longer than the plan allows.
        SlipwayError: with the words of the rank that crashed.
    """
    with tempfile.TemporaryDirectory(prefix="slipway-trial-") as folder:
        output, spec = Path(folder), replace(spec, output=folder)
        with ranks(spec, "engine.stopwatch", str(steps), str(warmup)) as (process, watch):
            status = wait(process, watch)
        return _combined(spec, output) if status == 0 else _failed(output, status)


def _combined(spec: RunSpec, output: Path) -> Trial:
    """What the ranks measured, as one."""
    measured = [read_json(output / f"measured-{rank}.json") for rank in range(spec.plan.ranks)]
    slowest = tuple(max(times) for times in zip(*(one["seconds"] for one in measured), strict=True))
    parts = {
        name: [fmean(values) for values in zip(*(one["parts"][name] for one in measured), strict=True)] for name in PARTS
    }
    return Trial(
        step_seconds=slowest,
        samples_per_second=spec.plan.global_batch / median(slowest),
        breakdown={name: median(values) for name, values in parts.items()},
        peak_bytes=max(one["peak_bytes"] for one in measured),
    )


def _failed(output: Path, status: int) -> Trial:
    """Why there are no numbers.

    Raises:
        SlipwayError: when it was not for want of memory.
    """
    errors = errors_in(output)
    scarce = [error for error in errors if error["kind"] == "OutOfMemory"]
    if scarce:
        return Trial(failed=scarce[0]["message"].splitlines()[0])
    own = own_errors(errors)
    started = any((output / "beacons").glob("rank-*.beacon"))
    if started and not own:  # the system's answer to too much memory is to kill, and nobody is left to say so
        return Trial(failed=f"a rank ended without a word (status {status}): killed, perhaps for want of memory")
    print((output / LOG).read_text(encoding="utf-8", errors="replace"), file=sys.stderr, flush=True)
    if not own:
        raise SlipwayError(f"timing a step failed: the ranks did not start (status {status}); what they said stands above")
    first = own[0]
    kind = "" if first["kind"] == "SlipwayError" else f"{first['kind']}: "
    raise SlipwayError(f"timing a step failed on rank {first['rank']}: {kind}{first['message']}")
