"""What checkpoints cost a training: `python -m benchmarks.checkpoint` writes benchmarks/results/checkpoint.json.

A checkpoint here comes with the weights that are the best so far, as it does after a better epoch. First segmentation as params.yaml has it, on two ranks: the share of the run in which it stood still for a checkpoint, although
its epochs, each of which ends with one, are far shorter than the default interval. Then a model of 100 million weights with
AdamW and an average, on one thread: how long it stands still for one checkpoint, and how much slower it computes while the
checkpoint is written, both as shares of the default interval.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.conditions import load_now, spread, write_result
from benchmarks.embedded import cpu_plan, demo_settings, prepare
from contracts.settings import TrainSettings
from engine.backends.single import Single
from engine.checkpoint import Checkpoints, copied
from engine.ema import Average
from engine.launch import launch
from engine.weights import distinct, save_weights

BAR = 0.01
NUM_SCENES = 1600
WIDTH, LAYERS = 2048, 24  # 100.7 million weights
BASELINE_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    load = load_now()
    with tempfile.TemporaryDirectory() as folder:
        small = of_a_run(Path(folder), options.epochs)
        large = of_a_large_model(Path(folder) / "large", options.repetitions)
    met = max(small["share"], large["share_of_the_interval"]) <= BAR
    write_result("checkpoint", bar=f"<= {BAR:.0%} of the time", met=met, load=load, segmentation=small, large_model=large)


def of_a_run(folder: Path, epochs: float) -> dict[str, Any]:
    """Segmentation on two ranks: the time that rank 0 says it stood still, and the share of the whole."""
    settings = demo_settings(epochs=epochs)
    train = settings.train
    plan = cpu_plan("ddp", ranks=2, micro_batch=train.ghost_batch, global_batch=train.global_batch)
    result = launch(prepare(folder, NUM_SCENES).spec("run", plan, settings))
    stalled = result.extra["checkpoint_seconds"]
    return {
        "seconds": result.seconds,
        "steps": result.steps,
        "checkpoints": int(epochs),
        "stalled_seconds": stalled,
        "share": stalled / result.seconds,
    }


def of_a_large_model(folder: Path, repetitions: int) -> dict[str, Any]:
    """Stand-still and slow-down of each of some checkpoints of 100 million weights; seconds."""
    torch.set_num_threads(1)
    backend = Single(cpu_plan("single", ranks=1, micro_batch=1, global_batch=1))
    objective = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    backend.prepare(objective, lambda module: torch.optim.AdamW(module.parameters()), None)
    average = Average(backend.weights(), decay=0.99)
    objective(torch.randn(1, WIDTH)).sum().backward()
    backend.step(rate=1.0, scale=1.0)
    checkpoints = Checkpoints(folder, fingerprint="benchmark", keep=1)
    stalls, writes, slowdowns = [], [], []
    for number in range(repetitions):
        usual = laps(until=time.perf_counter() + BASELINE_SECONDS)
        began = time.perf_counter()
        best = partial(save_weights, copied(distinct(objective.state_dict())), folder / "best.safetensors")
        checkpoints.save(number, {**backend.state(), "average": average.state(backend)}, first=best)
        saved = time.perf_counter()
        busy = laps(while_writing=checkpoints)
        checkpoints.wait()
        stalls.append(saved - began)
        writes.append(time.perf_counter() - saved)
        slowdowns.append(max(0.0, 1 - usual / busy))
    interval = TrainSettings().checkpoint_minutes * 60
    lost = median(slow * seconds for slow, seconds in zip(slowdowns, writes, strict=True))
    return {
        "weights": sum(value.numel() for value in objective.parameters()),
        "interval_seconds": interval,
        "stalled_seconds": spread(stalls),
        "written_in_seconds": spread(writes),
        "slower_while_writing": spread(slowdowns),
        "share_of_the_interval": median(stalls) / interval,
        "share_with_the_slowdown": (median(stalls) + lost) / interval,
    }


def laps(*, until: float = 0.0, while_writing: Checkpoints | None = None) -> float:
    """The mean seconds of a piece of computing, done again and again on this thread."""
    matrix, began, count = torch.randn(512, 512), time.perf_counter(), 0
    while time.perf_counter() < until or (while_writing and _writes(while_writing)):
        torch.mm(matrix, matrix)
        count += 1
    return (time.perf_counter() - began) / max(1, count)


def _writes(checkpoints: Checkpoints) -> bool:
    return checkpoints._writer is not None and checkpoints._writer.is_alive()


if __name__ == "__main__":
    main()
