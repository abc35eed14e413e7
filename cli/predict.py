"""`slipway predict`: a published model on your own files, with ONNX Runtime and without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from contracts.errors import SlipwayError
from contracts.files import finite, read_json, replace_when_complete
from contracts.progress import track
from contracts.settings import Settings, read_params
from contracts.workload import Prediction, load
from serving.drawing import drawn
from serving.runtime import Artifact, open_run
from tasks.downloading.addresses import local_path, scheme_of

DRAWN_AS_THEY_ARE = (".jpg", ".jpeg", ".png")
NUM_NAMED = 20
Confidence = Annotated[
    float | None, typer.Option(min=0, max=1, help="Lowest confidence shown. Otherwise what the model was set to.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Otherwise every core this process may use.")]


def predict(
    source: Annotated[Path, typer.Argument(help="A file, or a folder, which is searched with all its folders.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a model (artifact.json). Otherwise the newest published one, or the newest quantized one."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for predictions.json and overlays/.")] = Path("predictions"),
    confidence: Confidence = None,
    threads: Threads = None,
    overlays: Annotated[bool, typer.Option(help="Draw each result.")] = True,
) -> None:
    """Run a published model on a file or a folder: writes predictions.json and pictures with the results drawn in.

    Files that cannot be read are named and skipped; the exit status is then 1.
    """
    source, folder = check_places(source, output), model or newest_model()
    artifact = Artifact.read(folder)
    settings, workload = shown_from(artifact.settings_read(), confidence), load(artifact.workload)
    inputs = workload.raw.listed(source)
    run = open_run(folder, threads=threads)
    print(f"{artifact.workload} model {folder} ({artifact.recipe}), {', '.join(sorted(set(run.providers.values())))}")
    start = time.perf_counter()
    results = track(workload.predict(run, inputs, settings, artifact.facts), "predicting", total=len(inputs))
    done, failed = write_predictions(results, output, overlays=overlays)
    print(
        f"{done} predicted in {time.perf_counter() - start:.1f} s: {output / 'predictions.json'}"
        + (f", {output / 'overlays'}" if overlays and done else "")
    )
    if failed:
        rest = f"\n  and {len(failed) - NUM_NAMED} more" if len(failed) > NUM_NAMED else ""
        print(f"{len(failed)} could not be read and were skipped:\n  " + "\n  ".join(failed[:NUM_NAMED]) + rest)
        raise typer.Exit(1)


def check_places(source: Path, output: Path) -> Path:
    """`source`, if it exists and the output would not become part of it.

    Raises:
        SlipwayError: otherwise.
    """
    if not source.exists():
        raise SlipwayError(f"{source} does not exist: give a file or a folder")
    if output.exists() and not output.is_dir():
        raise SlipwayError(f"--output {output} is a file: give a folder")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise SlipwayError(
            f"--output {output} lies inside {source}: the next run would take its overlays for input. Give another folder"
        )
    return source


def shown_from(settings: Settings, confidence: float | None) -> Settings:
    """The settings with another lowest confidence, where one is given.

    Raises:
        SlipwayError: when results of this workload have no confidence.
    """
    if confidence is None:
        return settings
    if "shown" not in type(settings.evaluate).model_fields:
        raise SlipwayError("--confidence: the results of this model have no confidence")
    return settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"shown": confidence})})


def write_predictions(results: Iterator[Prediction], output: Path, *, overlays: bool) -> tuple[int, list[str]]:
    """Write predictions.json (a list, an element a line; complete or not there) and overlays/, as the results come.

    Gives the number of results and the errors of inputs that have none.
    """
    done, failed = 0, []
    with replace_when_complete(output / "predictions.json") as temporary, temporary.open("w", encoding="utf-8") as file:
        for place, result in enumerate(results):
            file.write(("[\n" if place == 0 else ",\n") + json.dumps(finite(result.json()), ensure_ascii=False))
            if result.error:
                failed.append(result.error)
                continue
            done += 1
            if overlays:
                write_picture(output / "overlays" / overlay_name(result.name), result)
        file.write("\n]\n" if done + len(failed) else "[]\n")
    return done, failed


def overlay_name(name: str) -> str:
    """Where the overlay of an input goes: the same name, with .png behind what browsers do not show."""
    return name if Path(name).suffix.lower() in DRAWN_AS_THEY_ARE else f"{name}.png"


def write_picture(path: Path, result: Prediction) -> None:
    """Draw a result into a file, complete or not there."""
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(drawn(result, path.suffix.lower()))


def artifact_of(workload: str, model: Path | None) -> Artifact:
    """The artifact of a model of this workload: of the one in a folder, or of the newest.

    Raises:
        SlipwayError: when there is none, or it is another workload's.
    """
    artifact = Artifact.read(model or newest_model(workload))
    if artifact.workload != workload:
        raise SlipwayError(f"{artifact.folder} is a model for {artifact.workload}: `slipway predict` runs it")
    return artifact


def newest_model(workload: str | None = None) -> Path:
    """The version that a file registry calls latest, or else the newest quantized model of this project; of one workload alone
    where one is named.

    Raises:
        SlipwayError: when there is neither.
    """
    pointers = [path for registry in registries() for path in registry.glob("*/latest.json")]
    for pointer in sorted(pointers, key=lambda path: path.stat().st_mtime, reverse=True):
        folder = latest(pointer)
        if workload in (None, Artifact.read(folder).workload):
            return folder
    found = Path("data/quantize").glob(f"{workload or '*'}/artifact.json")
    artifacts = sorted(found, key=lambda path: path.stat().st_mtime)
    if not artifacts:
        raise SlipwayError(
            f"no model {f'for {workload} ' if workload else ''}found: neither registry/*/latest.json nor data/quantize/*/artifact.json has one. "
            "Train one (slipway run), or give --model FOLDER"
        )
    return artifacts[-1].parent


def registries() -> list[Path]:
    """The folders that params.yaml publishes to, and the default one."""
    folders = [Path("registry")]
    sections = read_params().values() if Path("params.yaml").is_file() else ()
    for section in sections:
        publish: Any = section.get("publish") if isinstance(section, dict) else None
        target = str(publish.get("target", "")) if isinstance(publish, dict) else ""
        if target and scheme_of(target) == "file":
            folders.append(local_path(target))
    return list(dict.fromkeys(folders))


def latest(pointer: Path) -> Path:
    """The folder of the version that a latest.json names.

    Raises:
        SlipwayError: when the pointer or the version is broken.
    """
    try:
        version = str(read_json(pointer)["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise SlipwayError(f"{pointer} does not name a version ({error!r}): publish again, or give --model FOLDER") from None
    folder = pointer.parent / version
    if folder.resolve().parent != pointer.parent.resolve() or not folder.is_dir():
        raise SlipwayError(
            f"{pointer} names the version {version!r}, and {folder} is not there: publish again, or give --model FOLDER"
        )
    return folder
