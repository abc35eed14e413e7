"""How often each record of train is to be drawn, as `prepare.sampling_weights` and `prepare.balance` say, for the run to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contracts.errors import SlipwayError
from contracts.files import remove, replace_when_complete
from contracts.records import Records
from contracts.settings import Settings
from contracts.workload import Balanced, Workload
from tasks.stage import SAMPLING_WEIGHTS


def write_weights(folder: Path, kind: Workload, records: Records, settings: Settings, *, name: str) -> None:
    """Write the weights of train to `folder`, float64, one for each of its records in their order; no file where all are equal.

    Raises:
        SlipwayError: for a top folder that is not there, weights that leave nothing to draw, or a workload called `name` that
            has no balance of its own.
    """
    path, wanted = folder / SAMPLING_WEIGHTS, settings.prepare
    remove(path)
    if not (wanted.sampling_weights or wanted.balance):
        return
    train = records.split("train")
    folders = np.array([top_folder(train.key(index)) for index in range(len(train))])
    weights = by_folder(folders, wanted.sampling_weights)
    if wanted.balance:
        if not isinstance(kind, Balanced):
            raise SlipwayError(f"{name} has no balance of its own: set prepare.balance to 0")
        weights *= np.asarray(kind.balance(train, settings), np.float64) ** wanted.balance
    if not weights.sum() > 0:
        raise SlipwayError(f"prepare.sampling_weights = {dict(wanted.sampling_weights)} leaves no record of train to draw")
    if (weights == weights[0]).all():
        return
    with replace_when_complete(path) as temporary, temporary.open("wb") as file:
        np.save(file, weights)
    for one in np.unique(folders):
        here = folders == one
        share = weights[here].sum() / weights.sum()
        print(f"{name}: {one} has {here.mean():.1%} of the {len(train):,} records of train and {share:.1%} of the draws")


def top_folder(key: str) -> str:
    """The folder below the download that a record lies in; "." for one that lies on top."""
    top, below, _ = key.partition("/")
    return top if below else "."


def by_folder(folders: NDArray[np.str_], wanted: Mapping[str, float]) -> NDArray[np.float64]:
    """The weight of each record [n] by the top folder that it lies in; 1 for one that is not named."""
    there = sorted(set(folders.tolist()))
    for folder in wanted:
        if folder not in there:
            raise SlipwayError(
                f"prepare.sampling_weights names the top folder {folder!r}, where no record of train lies; there are: {', '.join(there)}"
            )
    return np.array([wanted.get(folder, 1.0) for folder in folders.tolist()], np.float64)
