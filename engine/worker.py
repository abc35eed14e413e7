"""What runs in every rank: `python -m engine.worker SPEC.json`, alone or under torchrun."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from contracts.files import write_json
from contracts.run import RunSpec

INTERRUPTED = 75  # EX_TEMPFAIL: ask again and it goes on


def main(path: str) -> int:
    """Train as the spec says; gives the exit status. What went wrong goes to error-<rank>.json of the run's folder."""
    _end_with_parents()
    spec = RunSpec.read(Path(path))
    rank = int(os.environ.get("RANK", "0"))
    try:
        return _train(spec)
    except BaseException as error:
        text = traceback.format_exc()
        write_json(
            Path(spec.output) / f"error-{rank}.json",
            {"rank": rank, "kind": type(error).__name__, "message": str(error), "traceback": text, "time": time.time()},
        )
        print(text, file=sys.stderr, flush=True)
        return 1


def _train(spec: RunSpec) -> int:
    import torch

    from engine.loop import Interrupted, Loop

    torch.set_num_threads(spec.plan.threads)
    loop = Loop(spec)
    try:
        result = loop.run()
    except Interrupted as stop:
        if loop.backend.rank == 0:
            print(stop, flush=True)
        return INTERRUPTED
    if result is not None:
        result.write(Path(spec.output) / "result.json")
    loop.backend.close()
    return 0


def _end_with_parents() -> None:
    """End this process when torchrun's agent, or whoever started the run, is gone: no rank trains on as an orphan."""
    import psutil

    watched = [psutil.Process(os.getppid())]
    launcher = os.environ.get("SLIPWAY_LAUNCHER")
    try:
        watched += [psutil.Process(int(launcher))] if launcher else []
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch() -> None:
        while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in watched):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
