"""What `slipway doctor` runs: ranks under torchrun that find each other, add up, train in half precision, share statistics."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.files import read_json, write_json
from contracts.workload import ROOT
from engine.planning.platforms import has_libuv, process_group_environment, torchrun

if TYPE_CHECKING:
    import torch

PHASES = START, IMPORT, JOIN, REDUCE, GRADIENT, PRECISION, STATISTICS, DONE = (
    "starting the ranks",
    "importing torch",
    "joining the process group",
    "adding up a tensor over the ranks",
    "averaging gradients over the ranks",
    "training in half precision",
    "comparing batch statistics",
    "done",
)
NETWORK = "the machine may be very busy; otherwise let programs on this machine talk over 127.0.0.1 (firewall, VPN, proxy), and see that `hostname` resolves"
NCCL = "try NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1; NCCL_DEBUG=INFO shows more; the driver must suit torch's CUDA"
REMEDIES = {
    START: NETWORK,
    IMPORT: "build the environment again from requirements.lock: delete .venv, then `make test`",
    JOIN: NETWORK,
    PRECISION: "train in fp32 meanwhile, and update torch and the driver",
    STATISTICS: "do not train on several ranks here; update torch",
}
# Half precision keeps 8 (bf16) or 11 (fp16) bits; a gradient through three layers stays well within this.
HALF_TOLERANCE, FULL_TOLERANCE = 0.05, 1e-5
GHOST_BATCH = 4


@dataclass(frozen=True)
class Outcome:
    """What came of one start under torchrun. `passed` has a line for each phase that worked; `fault` is empty if all did."""

    passed: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    phase: str = DONE
    remedy: str = ""


def launch(ranks: int, *, device: str = "cpu", group: str = "gloo", seconds: float = 60) -> Outcome:
    """Run the self-test on `ranks` ranks of this machine and say what came of it; never takes much longer than `seconds`."""
    with tempfile.TemporaryDirectory(prefix="slipway-doctor-") as name:
        folder = Path(name)
        command = torchrun(ranks, folder, libuv=has_libuv())
        command += ["-m", "engine.selftest", name, device, group, f"{seconds:g}"]
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], env=environment(), stdout=log, stderr=log, start_new_session=os.name == "posix"
            )
            try:
                status: int | None = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
        reports = {rank: read_json(path) for rank in range(ranks) if (path := folder / f"rank-{rank}.json").exists()}
        log_text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return explain(ranks, reports, status=status, group=group, seconds=seconds, log=log_text)


def environment() -> dict[str, str]:
    """The environment of the ranks: one thread each, this project's code, and how they find each other."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**found, **process_group_environment(libuv=has_libuv())}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun and its ranks, if they still run. Ranks also end themselves, by faulthandler's clock."""
    if process.poll() is None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def explain(
    ranks: int, reports: dict[int, dict[str, Any]], *, status: int | None, group: str, seconds: float, log: str = ""
) -> Outcome:
    """The ranks' own reports as an outcome; `status` None means that time ran out. Names the rank and what it was doing."""
    passed = _passed(reports) if len(reports) == ranks else {}
    if status == 0 and len(reports) == ranks and all(report["phase"] == DONE for report in reports.values()):
        return Outcome(passed)
    phase, fault = _cause(ranks, reports, "" if status is None else _last(log))
    fault = f"hung for {seconds:g} s: {fault}" if status is None else fault
    over_nccl = group == "nccl" and phase in (JOIN, REDUCE, GRADIENT)
    return Outcome(passed, fault, phase, NCCL if over_nccl else REMEDIES.get(phase, NETWORK))


def _passed(reports: dict[int, dict[str, Any]]) -> dict[str, str]:
    """The phases that every rank passed; where ranks have different things to say (their GPU), all of it."""
    everywhere = [phase for phase in PHASES if all(phase in report["passed"] for report in reports.values())]
    said = {phase: dict.fromkeys(report["passed"][phase] for _, report in sorted(reports.items())) for phase in everywhere}
    return {phase: "; ".join(lines) for phase, lines in said.items()}


def _cause(ranks: int, reports: dict[int, dict[str, Any]], last: str) -> tuple[str, str]:
    """The phase that failed, and how: by a rank's own words, by a rank that is missing, or by the one that is furthest behind."""
    told = [rank for rank in reports if reports[rank].get("error")]
    if told:
        # The first to fail is the cause: the others fail because it left them.
        rank = min(told, key=lambda one: reports[one]["time"])
        return (reports[rank]["phase"], f"rank {rank} failed while {reports[rank]['phase']}: {reports[rank]['error']}")
    missing = [rank for rank in range(ranks) if rank not in reports]
    if missing:
        return START, f"torchrun started {ranks - len(missing)} of {ranks} ranks{last}"
    rank = min(reports, key=lambda one: PHASES.index(reports[one]["phase"]))
    return reports[rank]["phase"], f"rank {rank} stopped while {reports[rank]['phase']}{last}"


def _last(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""


class Reporter:
    """Keeps rank-<n>.json up to date with what this rank is doing, so that a hang has a name."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"rank-{rank}.json"
        self.passed: dict[str, str] = {}
        self.phase = IMPORT
        self.write()

    def write(self, error: str = "") -> None:
        report = {"phase": self.phase, "passed": self.passed, "error": error, "time": time.time()}
        write_json(self.path, report)

    def run(self, phase: str, check: Callable[[], str]) -> None:
        self.phase = phase
        self.write()
        self.passed[phase] = check()


def main(folder: Path, device_kind: str, group: str, seconds: float) -> int:
    """One rank's part; gives the exit status."""
    # Whatever happens to torchrun and the doctor, this process does not outlive its time.
    faulthandler.dump_traceback_later(seconds + 5, exit=True)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    reporter = Reporter(folder, rank)
    try:
        import torch
        import torch.distributed as dist

        torch.manual_seed(0)
        if device_kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device_kind == "cuda" else torch.device("cpu")
        reporter.run(JOIN, lambda: join(group, seconds))
        reporter.run(REDUCE, lambda: add_up(device, rank, ranks))
        reporter.run(GRADIENT, lambda: average_gradients(device, rank, ranks))
        reporter.run(PRECISION, lambda: half_precision(device))
        reporter.run(STATISTICS, lambda: batch_statistics(device, rank, ranks))
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        reporter.write(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        return 1
    reporter.phase = DONE
    reporter.write()
    return 0


def join(group: str, seconds: float) -> str:
    import torch.distributed as dist

    dist.init_process_group(group, timeout=timedelta(seconds=max(5, seconds / 2)))
    return f"{dist.get_world_size()} in the {group} group"


def add_up(device: torch.device, rank: int, ranks: int) -> str:
    import torch
    import torch.distributed as dist

    total = torch.full((1000,), rank + 1.0, device=device)
    dist.all_reduce(total)
    expected = ranks * (ranks + 1) / 2
    if not bool((total == expected).all()):
        raise ArithmeticError(f"all_reduce gave {float(total[0])}, not {expected}")
    return "all_reduce adds up"


def average_gradients(device: torch.device, rank: int, ranks: int) -> str:
    """DDP on parts of a batch gives the gradient of the whole batch."""
    if ranks == 1 and device.type == "cpu":
        return "nothing to average"  # DDP would cost 4 s of imports to do nothing
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    batch = torch.randn(4 * ranks, 8, generator=torch.Generator().manual_seed(1)).to(device)
    layer = nn.Linear(8, 3).to(device)
    expected = torch.autograd.grad(layer(batch).square().mean(), layer.weight)[0]
    wrapped = DistributedDataParallel(layer, device_ids=[device] if device.type == "cuda" else None)
    wrapped(batch[4 * rank : 4 * rank + 4]).square().mean().backward()
    assert layer.weight.grad is not None
    return f"DDP gives the whole batch's gradient ({_near(layer.weight.grad, expected, FULL_TOLERANCE):.0e} apart)"


def half_precision(device: torch.device) -> str:
    """Forward and backward under autocast give nearly the gradient of fp32, in each half precision that the plan may choose."""
    import torch

    kinds = [torch.bfloat16]
    if device.type == "cuda":
        kinds = [torch.float16, *(kinds if torch.cuda.get_device_capability(device) >= (8, 0) else [])]
    expected = _gradient(device, None)
    found = []
    for kind in kinds:
        apart = _near(_gradient(device, kind), expected, HALF_TOLERANCE)
        found.append(f"{apart:.1%} ({str(kind).removeprefix('torch.')})")
    name = f"{torch.cuda.get_device_name(device)}: " if device.type == "cuda" else ""
    return f"{name}gradients within {', '.join(found)} of fp32's"


def _gradient(device: torch.device, kind: torch.dtype | None) -> torch.Tensor:
    """The first gradient of a small convolution network, its loss scaled as in training with fp16."""
    import torch
    from torch import nn

    torch.manual_seed(2)
    first, second, last = (nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16 * 8 * 8, 4))
    network = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Flatten(), last).to(device)
    images = torch.randn(4, 3, 12, 12).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=kind is torch.float16)
    with torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None):
        loss = network(images).float().square().mean()
    scaler.scale(loss).backward()
    assert first.weight.grad is not None
    return first.weight.grad.float() / scaler.get_scale()


def batch_statistics(device: torch.device, rank: int, ranks: int) -> str:
    """Ghost batch normalisation, our rule on every device, gives the same whatever the ranks; SyncBatchNorm too, on GPUs."""
    import torch
    import torch.distributed as dist
    from torch import nn

    from engine.normalization import GhostStatistics

    num = 2 * ranks * GHOST_BATCH
    batch = torch.randn(num, 6, 5, 5, generator=torch.Generator().manual_seed(3)).to(device)
    mine = batch[rank * num // ranks : (rank + 1) * num // ranks]

    def alone(values: torch.Tensor) -> torch.Tensor:
        return values

    def mean(values: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(values)
        return values / ranks

    results = []
    for part, over_ranks in ((batch, alone), (mine, mean)):
        layer = nn.BatchNorm2d(6).to(device)
        statistics = GhostStatistics(layer, ghost_batch=GHOST_BATCH, num_ghosts=2 * ranks)
        gradient = torch.autograd.grad(layer(part).sigmoid().square().mean(), layer.weight)[0]
        statistics.update(over_ranks(statistics.seen()))
        running = [one for one in (layer.running_mean, layer.running_var) if one is not None]
        results.append(torch.cat([over_ranks(gradient.clone()), *running]))
    told = f"ghost batches agree over {ranks} rank{'s' * (ranks > 1)} ({_near(results[1], results[0], FULL_TOLERANCE):.0e} apart)"
    if device.type != "cuda":
        return told + "; torch's SyncBatchNorm does not exist on CPUs and is not needed"
    return told + f"; SyncBatchNorm too ({_sync_batch_norm(device, batch, mine):.0e} apart)"


def _sync_batch_norm(device: torch.device, batch: torch.Tensor, mine: torch.Tensor) -> float:
    import torch
    from torch import nn

    whole, shared = nn.BatchNorm2d(6).to(device), nn.SyncBatchNorm(6).to(device)
    whole(batch)
    shared(mine)
    assert isinstance(whole.running_var, torch.Tensor) and isinstance(shared.running_var, torch.Tensor)
    return _near(shared.running_var, whole.running_var, FULL_TOLERANCE * 10)


def _near(value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> float:
    """The largest difference relative to the largest expected value.

    Raises:
        ArithmeticError: when it is above `tolerance`, or not a number.
    """
    apart = float((value - expected).abs().max() / expected.abs().max())
    if not apart <= tolerance:
        raise ArithmeticError(f"the result is {apart:.1e} away from the expected one, more than {tolerance:.0e}")
    return apart


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])))
