"""How much of a second core two ranks make use of: `python -m benchmarks.ranks` writes benchmarks/results/ranks.json.

Segmentation as params.yaml has it and a small transformer train through the engine's own loop: on one rank with one thread;
under `ddp` on two such ranks, each of which has as much to do in a step as the one; on two that share the one's global batch, so
that each does half, but the optimiser's step whole; and, to see what the machine itself can give, as two runs side by side that do
not know of each other. They take turns; the numbers are medians over the turns of the median step, validation and start left out.
Ranks wait for each other in every step, so that what the machine can give is told once more with each step of the two that share
nothing as long as the slower one's: where other machines' programs take cores away now and then, that is about the most to be had.
The processor's time of a step is given too: it tells what the exchange costs without what waiting, and other programs, cost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.conditions import load_now, spread, write_result
from contracts.files import read_json, write_json
from contracts.plan import Plan
from contracts.run import RunSpec

BAR = 0.95
WARMUP_STEPS = 3
# Name, samples of a step, samples of a micro-batch
CASES = (("segmentation", 16, 8), ("language_model", 32, 16))
NUM_SCENES = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    load = load_now()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(Path(folder) / case[0], *case, turns=options.turns, steps=options.steps) for case in CASES]
    met = all(row["ratio"] >= BAR for row in rows)
    bar = f"2 ranks >= {BAR:.0%} of two times one rank"
    write_result("ranks", bar=bar, met=met, load=load, turns=options.turns, steps=options.steps, rows=rows)


def compare(folder: Path, name: str, global_batch: int, micro_batch: int, *, turns: int, steps: int) -> dict[str, Any]:
    """One workload on one rank, on two, and twice on one rank at the same time, in turns."""
    from benchmarks.embedded import cpu_plan

    make = makers(folder)[name]
    one = cpu_plan("single", ranks=1, micro_batch=micro_batch, global_batch=global_batch)
    two = cpu_plan("ddp", ranks=2, micro_batch=micro_batch, global_batch=2 * global_batch)
    half = cpu_plan("ddp", ranks=2, micro_batch=micro_batch, global_batch=global_batch)
    plans = {"one": [one], "two": [two], "two with half each": [half], "side by side": [one, one]}
    seconds: dict[str, list[float]] = {what: [] for what in plans}
    work: dict[str, list[float]] = {what: [] for what in seconds}
    slower: list[float] = []
    for turn in range(turns):
        order = list(seconds) if turn % 2 else [*seconds][::-1]
        for what in order:
            runs = together([make(plan) for plan in plans[what]], steps)
            seconds[what].append(median(median(run["clock"]) for run in runs))
            work[what].append(median(median(run["processor"]) for run in runs))
            if what == "side by side":
                slower.append(median(map(max, *(run["clock"] for run in runs))))
        print(name, {what: round(values[-1], 4) for what, values in seconds.items()}, flush=True)
    alone = median(seconds["one"])
    return {
        "workload": name,
        "global_batch": global_batch,
        "micro_batch": micro_batch,
        "ratio": alone / median(seconds["two"]),
        "ratio_of_each_turn": [first / second for first, second in zip(seconds["one"], seconds["two"], strict=True)],
        "ratio_at_the_same_global_batch": alone / (2 * median(seconds["two with half each"])),
        "ratio_of_two_that_share_nothing": alone / median(seconds["side by side"]),
        "ratio_of_two_that_share_nothing_but_wait": alone / median(slower),
        "ratio_of_the_processors_time": median(work["one"]) / median(work["two"]),
        "step_seconds": {what: spread(values) for what, values in seconds.items()},
    }


def makers(folder: Path) -> dict[str, Callable[[Plan], RunSpec]]:
    """How to make a run of each workload from a plan."""
    from benchmarks import embedded, language_model

    def segmentation(plan: Plan) -> RunSpec:
        data = embedded.Embedded(folder, {})
        facts = folder / "facts.json"
        if not facts.exists():
            write_json(facts, embedded.prepare(folder, NUM_SCENES).facts)
        settings = embedded.demo_settings(global_batch=plan.global_batch, epochs=100)
        return replace(data, facts=read_json(facts)).spec("run", plan, settings)

    return {"segmentation": segmentation, "language_model": lambda plan: language_model.spec(folder, plan)}


def together(specs: list[RunSpec], steps: int) -> list[dict[str, list[float]]]:
    """The seconds of each step of some runs that begin at the same time, by the `clock` and of rank 0's `processor`."""
    with tempfile.TemporaryDirectory() as name:
        started = [start(replace(spec, output=f"{name}/{number}"), steps) for number, spec in enumerate(specs)]
        for process in started:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, process.args)
        return [read_json(Path(f"{name}/{number}/seconds.json")) for number in range(len(specs))]


def start(spec: RunSpec, steps: int) -> subprocess.Popen[bytes]:
    """The ranks of a run, each of which is this module."""
    from engine.launch import command, environment

    path = Path(spec.output) / "spec.json"
    spec.write(path)
    words = {"BENCHMARK_STEPS": str(steps)}
    return subprocess.Popen(command(spec.plan, path, module="benchmarks.ranks"), env={**environment(spec.plan), **words})


def rank(path: Path) -> None:
    """Take steps of a run and, on rank 0, write the seconds of each, by the clock and of the processor."""
    import torch

    from benchmarks.language_model import LanguageModel
    from contracts.workload import load
    from engine import loop as looping

    spec = RunSpec.read(path)
    torch.set_num_threads(spec.plan.threads)
    looping.load = lambda name: LanguageModel() if name == "language_model" else load(name)  # pyright: ignore
    loop = looping.Loop(spec)
    loop._stop, loop.journal = looping._StopRequest(), None
    loop._open_feed()
    clock, processor = [], []
    for _ in range(WARMUP_STEPS + int(os.environ["BENCHMARK_STEPS"])):
        began, worked = time.perf_counter(), time.process_time()
        loop._step()
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    if loop.backend.rank == 0:
        write_json(path.with_name("seconds.json"), {"clock": clock[WARMUP_STEPS:], "processor": processor[WARMUP_STEPS:]})
    loop.backend.close()


if __name__ == "__main__":
    rank(Path(sys.argv[1])) if sys.argv[1:] and sys.argv[1].endswith(".json") else main()
