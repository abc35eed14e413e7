"""Starts the ranks of a run, passes on what they say, and turns their end into a result or an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.plan import Plan
from contracts.run import RunResult, RunSpec
from contracts.workload import ROOT
from engine.worker import INTERRUPTED


def launch(spec: RunSpec) -> RunResult:
    """Train as `spec` says, in processes of their own, and give what they report.

    Raises:
        SlipwayError: with the first rank's own words when training failed or was interrupted.
    """
    output = Path(spec.output)
    output.mkdir(parents=True, exist_ok=True)
    for stale in output.glob("error-*.json"):
        stale.unlink()
    (output / "result.json").unlink(missing_ok=True)
    spec.write(output / "spec.json")
    process = subprocess.Popen(command(spec.plan, output / "spec.json"), env=environment(spec.plan))
    asked: list[int] = []
    handler = _passing_on(process, asked)
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = process.wait()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if (output / "result.json").exists():
        return RunResult.read(output / "result.json")
    raise SlipwayError(_explained(output, status, interrupted=bool(asked)))


def command(plan: Plan, spec: Path) -> list[str]:
    """The command line that runs every rank of a plan on this machine."""
    worker = ["-m", "engine.worker", str(spec)]
    if plan.ranks == 1:
        return [sys.executable, *worker]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={plan.ranks}", "--monitor-interval=0.1"]
    return [sys.executable, *torchrun, *worker]


def environment(plan: Plan) -> dict[str, str]:
    """The environment of the ranks: the plan's threads, this project's code, and who to end with."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(plan.threads),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "SLIPWAY_LAUNCHER": str(os.getpid()),
        # The agent's shared store keeps keys of an earlier start, on which a restart can hang.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def _passing_on(process: subprocess.Popen[bytes], asked: list[int]) -> Callable[[int, FrameType | None], None]:
    """A signal handler that tells the ranks, which agree on a step, save and end; `asked` collects the signals."""

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    return handle


def _explained(output: Path, status: int, *, interrupted: bool) -> str:
    """Why there is no result, in the words of the rank that failed first."""
    errors = sorted((read_json(path) for path in output.glob("error-*.json")), key=lambda error: error["time"])
    if errors:
        first = errors[0]
        what = first["message"] if first["kind"] == "SlipwayError" else f"{first['kind']}: {first['message']}"
        return f"training failed on rank {first['rank']}: {what}"
    if interrupted or status == INTERRUPTED:
        return "training was interrupted; what it had learnt is saved, and the same command goes on from there"
    return (
        f"training ended with status {status} and no report: a rank was killed (out of memory?); the last checkpoint is kept"
    )
