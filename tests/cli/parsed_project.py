"""A project folder as `download` and `parse` leave it, for the verbs that train a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Scenes


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
