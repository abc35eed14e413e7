"""What runs in every rank: `python -m engine.worker SPEC.json`, alone or under torchrun."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from contracts.ending import leave
from contracts.errors import Interrupted
from contracts.files import write_json
from contracts.run import RunSpec
from engine import beacon

# What torch says where a loader process was killed, or is gone without its reason.
LOST_LOADER = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed by signal|exited unexpectedly$)")
TOLD_SECONDS = 1.0
LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe")


def main(path: str) -> int:
    """Train as the spec says; gives the exit status."""
    return run_rank(path, _train)


def run_rank(path: str, work: Callable[[RunSpec], None], *, memory_is_a_kind: bool = False) -> int:
    """Do `work` as one rank of the run in SPEC.json, watched and tied to whoever started it; gives the exit status.

    What went wrong goes to error-<rank>.json of the run's folder; with `memory_is_a_kind`, every way in which memory runs out
    counts there as OutOfMemory.
    """
    end_with_parents()
    spec = RunSpec.read(Path(path))
    rank, output = int(os.environ.get("RANK", "0")), Path(spec.output)
    beacon.start(output / "beacons", rank)
    try:
        work(spec)
    except Interrupted as stop:
        if rank == 0:
            write_json(output / "interrupted.json", {"message": str(stop)})
    except BaseException as first:
        try:
            failed, error = time.time(), _cause(first)
        except RuntimeError as told:  # of a loader process, in this very moment
            failed, error = time.time(), _cause(told)
        text = "".join(traceback.format_exception(error))
        kind = "OutOfMemory" if memory_is_a_kind and _is_out_of_memory(error) else _kind(error)
        write_json(
            output / f"error-{rank}.json",
            {"rank": rank, "kind": kind, "message": str(error), "traceback": text, "time": failed},
        )
        print(text, file=sys.stderr, flush=True)
        return 1
    beacon.finish()
    return 0


def _cause(error: BaseException) -> BaseException:
    """The error, or that a loader process was killed, where that is why a connection broke: the system tells of it a moment later.

    From then on it tells nothing more, as torch raises an error at its word, wherever this process is.
    """
    try:
        if isinstance(error, OSError | EOFError):
            time.sleep(TOLD_SECONDS)
    except RuntimeError as told:
        return told
    finally:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return error


def _is_out_of_memory(error: BaseException) -> bool:
    from engine.memory import is_out_of_memory

    return is_out_of_memory(error)


def _train(spec: RunSpec) -> None:
    import torch

    from engine.loop import Loop
    from engine.memory import limited

    torch.set_num_threads(spec.plan.threads)
    loop = Loop(spec)
    with limited(loop.backend.device):
        result = loop.run()
    if result is not None:
        result.write(Path(spec.output) / "result.json")
    with beacon.collective("leaving the group"):
        loop.backend.close()


def _kind(error: BaseException) -> str:
    """The error's class, LostRank where it only says that another rank is gone, LostLoader where a loader process of this one is."""
    import torch.distributed as dist

    if isinstance(error, RuntimeError) and LOST_LOADER.search(str(error)):
        return "LostLoader"
    lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in LOST)
    )
    return "LostRank" if lost else type(error).__name__


def end_with_parents() -> None:
    """End this process when torchrun's agent, or whoever started the run, is gone: no rank trains on as an orphan."""
    import psutil

    watched = [psutil.Process(os.getppid())]
    if launcher := os.environ.get("SLIPWAY_LAUNCHER"):
        above = [one for one in psutil.Process().parents() if one.pid == int(launcher)]
        if not above:  # it or the agent is gone already, and another process has taken us over
            os._exit(1)
        watched += above

    def watch() -> None:
        while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in watched):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    leave(partial(main, sys.argv[1]))
