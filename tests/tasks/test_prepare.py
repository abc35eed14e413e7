"""The stage prepare: what a workload computes once, and the facts that the later stages get of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import SlipwayError
from contracts.workload import load, settings_of
from tasks import prepare
from tasks.training import known_facts
from tests.cli.parsed_project import enter
from tests.conftest import Scenes


@pytest.fixture
def project(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose segmentation data is parsed, and nothing more."""
    folder = enter(tmp_path / "project", scenes, monkeypatch)
    (folder / "data" / "prepare" / "segmentation" / "facts.json").unlink()
    return folder


def test_a_workload_with_nothing_to_prepare_leaves_empty_facts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run("segmentation")
    assert json.loads((project / "data" / "prepare" / "segmentation" / "facts.json").read_text()) == {}
    assert capsys.readouterr().out == "segmentation: nothing to prepare\n"
    assert "prepared" not in known_facts("segmentation")


def test_what_a_workload_prepares_reaches_the_later_stages_with_its_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(self: Any, records: Any, settings: Any, facts: Any, folder: Path) -> dict[str, Any]:
        (folder / "sum.txt").write_text(str(len(records)))
        return {"num_prepared": len(records), "classes_then": facts["classes"]}

    monkeypatch.setattr(type(load("segmentation")), "prepare", prepared)
    prepare.run("segmentation")
    facts = known_facts("segmentation")
    assert facts["num_prepared"] == int(Path(facts["prepared"], "sum.txt").read_text()) == 48
    assert facts["classes_then"] == facts["classes"]
    assert not Path(facts["prepared"]).is_absolute()


def test_training_without_the_stage_is_refused_with_the_command_that_is_missing(project: Path) -> None:
    assert settings_of("segmentation")
    with pytest.raises(SlipwayError, match=r"run the prepare stage first .*python -m tasks.prepare segmentation"):
        known_facts("segmentation")
