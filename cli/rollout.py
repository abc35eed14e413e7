"""`slipway rollout`: a model of algorithm distillation plays tasks, with ONNX Runtime and without torch, and says which of them it was
trained on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.predict import Threads, artifact_of
from contracts.errors import SlipwayError
from contracts.files import write_json
from contracts.pictures import write_picture
from contracts.workload import load
from serving.runtime import open_run

WORKLOAD = "algorithm_distillation"


def rollout(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="Tasks, numbers with commas: 8,8 is a goal. Otherwise the hardest of those held out."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a model. Otherwise the newest one.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for rollouts.json and the films.")] = Path("rollouts"),
    times: Annotated[int, typer.Option(min=1, help="Rollouts of each task.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed draws other actions.")] = 0,
    films: Annotated[bool, typer.Option(help="Draw each rollout as an animated GIF.")] = True,
    threads: Threads = None,
) -> None:
    """Let a model play its episodes on each task, with frozen weights: writes what it did and what it got."""
    artifact = artifact_of(WORKLOAD, model)
    if output.exists() and not output.is_dir():
        raise SlipwayError(f"--output {output} is a file: give a folder")
    workload: Any = load(WORKLOAD)
    run, start = open_run(artifact.folder, threads=threads), time.perf_counter()
    played = list(workload.rollouts(run, tasks or [], artifact.settings_read(), artifact.facts, times=times, seed=seed))
    seconds = time.perf_counter() - start
    write_json(output / "rollouts.json", [one.json() for one in played])
    for one in played:
        if films:
            write_picture(output / f"{one.name}.gif", one.film())
        print(f"{one.name} ({one.known}): returns {', '.join(map(str, one.returns))}; the optimum is {one.optimum}")
    print(f"{len(played)} rollouts in {seconds:.1f} s by {artifact.folder} ({artifact.recipe}): {output}")
