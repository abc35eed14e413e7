"""How soon a run whose rank was killed trains again: `python -m benchmarks.restart` writes benchmarks/results/restart.json.

Segmentation as params.yaml has it under `ddp` on two ranks of one thread. Rank 1 is killed with -9 in the middle of an epoch, once
the agent for the next start stands by, as it does in all but the first half minute of a training; the time runs from there to the
end of the first optimiser step of the new ranks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.conditions import load_now, spread, write_result
from benchmarks.embedded import Embedded, cpu_plan, demo_settings, prepare
from benchmarks.soak import LOOK_SECONDS, Training
from engine.beacon import STARTING

BAR = 10.0
NUM_SCENES = 400
KILLED_IN_STEP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    load = load_now()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), NUM_SCENES)
        rows = [measure(data, number) for number in range(options.repetitions)]
    parts = {name: spread([row[name] for row in rows]) for name in rows[0]}
    seconds = median(row["first_step_done"] for row in rows)
    write_result(
        "restart", bar=f"<= {BAR:.0f} s", met=seconds <= BAR, load=load, seconds_median=seconds, since_the_kill=parts
    )


def measure(data: Embedded, number: int) -> dict[str, float]:
    """Seconds since the kill at which each part of the new start was over."""
    settings = demo_settings()
    train = settings.train
    plan = cpu_plan("ddp", ranks=2, micro_batch=train.ghost_batch, global_batch=train.global_batch)
    training = Training(data.spec(f"run-{number}", plan, settings))
    launcher = training.start()
    try:
        training.wait_for(lambda mark: (mark.step or 0) >= KILLED_IN_STEP)
        old = training.wait_until(lambda: with_standby(training, launcher), every=LOOK_SECONDS)
        ranks = [one.pid for name, one in old.items() if name.startswith("rank")]
        old["rank 1"].kill()
        killed = time.monotonic()
        after = {}
        first = training.wait_for(lambda mark: mark.pid not in ranks)
        after["first_word_of_rank_0"] = time.monotonic() - killed
        first = training.wait_for(lambda mark: mark.pid == first.pid and mark.phase != STARTING and mark.step is not None)
        after["first_step_begun"] = time.monotonic() - killed
        training.wait_for(lambda mark: mark.pid == first.pid and (mark.step or 0) > (first.step or 0))
        after["first_step_done"] = time.monotonic() - killed
    finally:
        training.processes(launcher)
        launcher.kill()
        launcher.wait()
        training.alive()
    print(after, flush=True)
    return after


def with_standby(training: Training, launcher: psutil.Popen) -> dict[str, psutil.Process] | None:
    """The processes of a training in which an agent stands by: it is there, and has done nothing for a second."""
    there = training.processes(launcher)
    return there if "standby" in there and there["standby"].cpu_percent(interval=1.0) == 0.0 else None


if __name__ == "__main__":
    main()
