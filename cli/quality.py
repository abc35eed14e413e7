"""`slipway quality`: what the parsed data of a workload are like, before any training: a page, its pictures, the numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import SlipwayError
from contracts.files import read_json, replace_when_complete
from contracts.records import Records, read_facts
from contracts.workload import HasQuality, load, names, settings_of
from tasks.parse import QUALITY, refused_of, write_quality
from tasks.stage import folder

NUMBERS = "quality.json"


def quality(
    workload: Annotated[str, typer.Argument(help="Which workload; its data must be parsed.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report; by default data/quality/WORKLOAD.")
    ] = None,
) -> None:
    """Report on the quality of a workload's parsed data: duplicates, lengths, balance, rare things. No model is needed.

    Where the stage parse refused the data as a whole, it is the report that it wrote of them.
    """
    settings, kind = settings_of(workload), with_quality(workload)
    output = output or folder("quality", workload)
    check_place(output)
    parsed = folder("parse", workload)
    refused = refused_of(parsed) / QUALITY
    if (refused / NUMBERS).is_file():
        with replace_when_complete(output) as partial:
            shutil.copytree(refused, partial)
        print("the stage parse refused these data:")
        tell(output)
        return
    records = Records.open(parsed, root=folder("download", workload) / "raw")
    write_quality(kind, settings, records, read_facts(parsed), output)
    tell(output)


def tell(report: Path) -> None:
    """Print what a report found, and where it lies."""
    findings = read_json(report / NUMBERS)["findings"]
    print(*(f"* {one}" for one in findings), f"written: {report / 'quality.md'}, {report / NUMBERS}", sep="\n")


def with_quality(workload: str) -> HasQuality:
    """The workload, if it has a data quality report.

    Raises:
        SlipwayError: when it has none; says which workloads do.
    """
    kind = load(workload)
    if isinstance(kind, HasQuality):
        return kind
    others = [name for name in names() if isinstance(load(name), HasQuality)]
    there_are = f"these have one: {', '.join(others)}" if others else "no workload has one"
    raise SlipwayError(f"the workload {workload!r} has no data quality report; {there_are}")


def check_place(output: Path) -> None:
    """The folder is replaced as a whole, so it must be new, empty, or an earlier report.

    Raises:
        SlipwayError: otherwise.
    """
    if output.is_dir():
        if any(output.iterdir()) and not (output / NUMBERS).is_file():
            raise SlipwayError(f"--output {output} holds other things, which would be lost: give a new folder")
    elif output.exists():
        raise SlipwayError(f"--output {output} is a file: give a folder")
