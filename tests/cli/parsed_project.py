"""A project folder as `download` and `parse` leave it, for the verbs that train a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.files import write_json
from tests.conftest import Scenes
from tests.engine.tiny_ranks import join_the_house
from tests.engine.tiny_workload import NAME, write_rows


def enter(folder: Path, scenes: Scenes, patch: pytest.MonkeyPatch, **train: Any) -> Path:
    """Make `folder` the project at hand: the scenes as its data, 32 px, `train` its settings of that name."""
    parse, download = folder / "data" / "parse" / "segmentation", folder / "data" / "download" / "segmentation"
    for place in (parse, download):
        place.mkdir(parents=True)
    (parse / "records.arrow").symlink_to(scenes.records / "records.arrow")
    (parse / "facts.json").write_text(json.dumps(scenes.facts))
    (download / "raw").symlink_to(scenes.raw)
    (folder / "data" / "prepare" / "segmentation").mkdir(parents=True)
    (folder / "data" / "prepare" / "segmentation" / "facts.json").write_text("{}")
    params = {"segmentation": {"train": {"image_size": 32, "epochs": 1, **train}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    patch.chdir(folder)
    return folder


def enter_tiny(folder: Path, patch: pytest.MonkeyPatch, **train: Any) -> Path:
    """The same with rows of the tiny workload, whose ranks start in half the time."""
    join_the_house(patch.setattr)
    patch.chdir(folder)
    write_rows(folder / "data" / "parse" / NAME, num_train=32, num_val=8)
    for stage in ("parse", "prepare"):
        write_json(folder / "data" / stage / NAME / "facts.json", {})
    (folder / "params.yaml").write_text(yaml.safe_dump({NAME: {"train": train}}))
    return folder
