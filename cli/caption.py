"""`slipway caption`: captions for a folder of pictures, with ONNX Runtime and without torch."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cli.predict import Threads, artifact_of
from contracts.errors import SlipwayError
from contracts.files import replace_when_complete
from contracts.progress import track
from contracts.workload import Prediction, load
from serving.runtime import open_run

WORKLOAD = "captioning"


def caption(
    source: Annotated[Path, typer.Argument(help="A picture, or a folder, which is searched with all its folders.")],
    model: Annotated[Path | None, typer.Option(help="Folder of a captioning model. Otherwise the newest one.")] = None,
    output: Annotated[Path, typer.Option(help="A file .jsonl or .csv: a line a picture.")] = Path("captions.jsonl"),
    beams: Annotated[int | None, typer.Option(min=1, help="Captions followed at once; 1 is greedy.")] = None,
    threads: Threads = None,
) -> None:
    """Write a caption for each picture. Those that cannot be read are named and skipped; the exit status is then 1."""
    if output.suffix not in (".jsonl", ".csv"):
        raise SlipwayError(f"--output {output}: the name must end with .jsonl or .csv")
    artifact = artifact_of(WORKLOAD, model)
    settings = artifact.settings_read()
    if beams:
        settings = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"beams": beams})})
    workload = load(WORKLOAD)
    inputs = workload.raw.listed(source)
    run = open_run(artifact.folder, threads=threads)
    start = time.perf_counter()
    results = track(workload.predict(run, inputs, settings, artifact.facts), "captioning", total=len(inputs))
    done, failed = write_captions(results, output)
    seconds = time.perf_counter() - start
    print(
        f"{done} captions in {seconds:.1f} s ({done / seconds:.1f} a second) by {artifact.folder} ({artifact.recipe}): {output}"
    )
    if failed:
        print(f"{len(failed)} could not be read and were skipped:\n  " + "\n  ".join(failed))
        raise typer.Exit(1)


def write_captions(results: Iterator[Prediction], output: Path) -> tuple[int, list[str]]:
    """Write a line with image and caption for each result, complete or not there; gives their number and the errors of others."""
    done, failed = 0, []
    with replace_when_complete(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if output.suffix == ".csv":
            table.writerow(["image", "caption"])
        for result in results:
            if result.error:
                failed.append(result.error)
                continue
            done += 1
            line = result.json()
            if output.suffix == ".csv":
                table.writerow([line["image"], line["caption"]])
            else:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return done, failed
