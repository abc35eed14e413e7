"""The stage prepare: what a workload computes once, and the facts that the later stages get of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from contracts.errors import SlipwayError
from contracts.records import Record, Records, write_records
from contracts.run import RunSpec
from contracts.workload import load, settings_of
from engine.hardware import detect
from engine.planning import plan
from tasks import prepare
from tasks.stage import SAMPLING_WEIGHTS
from tasks.training import known_facts, training_run
from tasks.weighing import top_folder
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


def weighed(**prepared: Any) -> Path:
    """The stage with these settings of `prepare`, and where it puts the weights."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["segmentation"]["prepare"] = prepared
    Path("params.yaml").write_text(yaml.safe_dump(params))
    prepare.run("segmentation")
    return Path("data/prepare/segmentation") / SAMPLING_WEIGHTS


def run() -> RunSpec:
    settings = settings_of("segmentation")
    return training_run("segmentation", settings, plan(detect(), settings.train))


def test_weights_of_top_folders_reach_the_run_and_its_name(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = Records.open(project / "data" / "parse" / "segmentation", root=project).split("train")
    (top,) = {top_folder(record.key) for record in records}
    moved = [Record(f"b/{one.key}" if number % 4 else one.key, **_but_key(one)) for number, one in enumerate(records)]
    _rewrite(project, moved)
    weights = np.load(weighed(sampling_weights={"b": 0.5}))
    assert weights.tolist() == [0.5 if number % 4 else 1.0 for number in range(len(moved))]
    share = 1 / (1 + 3 * 0.5)
    told = f"segmentation: {top} has 25.0% of the {len(moved)} records of train and {share:.1%} of the draws"
    assert told in capsys.readouterr().out
    assert Path(run().sampling_weights or "") == (project / "data/prepare/segmentation" / SAMPLING_WEIGHTS)
    names = {run().fingerprint}
    weighed(sampling_weights={"b": 0.25})
    names.add(run().fingerprint)
    assert not weighed(sampling_weights={top: 3, "b": 3}).exists(), "all alike"
    assert run().sampling_weights is None
    names.add(run().fingerprint)
    assert len(names) == 3


def _but_key(record: Record) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in ("key", "likeness")}


def _rewrite(project: Path, records: list[Record]) -> None:
    inputs, targets = load("segmentation").schema()
    parsed = project / "data" / "parse" / "segmentation"
    (parsed / "records.arrow").unlink()
    write_records(parsed, records, inputs=inputs, targets=targets, shares=(1, 0, 0))


def test_weights_that_fit_nothing_stop_and_say_what_there_is(project: Path) -> None:
    top = top_folder(Records.open(project / "data" / "parse" / "segmentation", root=project).key(0))
    with pytest.raises(SlipwayError, match=f"names the top folder 'cocoo', where no record of train lies; there are: {top}"):
        weighed(sampling_weights={"cocoo": 0.5})
    with pytest.raises(SlipwayError, match="leaves no record of train to draw"):
        weighed(sampling_weights={top: 0})
    with pytest.raises(SlipwayError, match=r"segmentation has no balance of its own: set prepare.balance to 0"):
        weighed(balance=0.5)
    with pytest.raises(SlipwayError, match=r"segmentation.prepare.sampling_weights.coco = -1"):
        weighed(sampling_weights={"coco": -1})
