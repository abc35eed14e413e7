"""Whether there is anything to distil is said before training: the original's histories held nothing, and nobody knew."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import app
from contracts.errors import SlipwayError
from contracts.records import Record, Records, write_records
from tasks import download, parse
from workloads.algorithm_distillation import WORKLOAD
from workloads.algorithm_distillation.collecting import collect
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.histories import Histories, write_part
from workloads.algorithm_distillation.quality import look
from workloads.algorithm_distillation.settings import HistoryDownload

from .conftest import Tiny


def parsed(raw: Path, folder: Path) -> Records:
    inputs, targets = WORKLOAD.schema()
    found = (one for one in WORKLOAD.parse(raw, WORKLOAD.Settings(), processes=1) if isinstance(one, Record))
    write_records(folder, found, inputs=inputs, targets=targets, shares=(0.8, 0.1, 0.1))
    return Records.open(folder, root=raw)


def collected(folder: Path, **settings: object) -> Path:
    collect(folder / "raw", HistoryDownload.model_validate({"num_samples": 324, **settings}), folder / "store")
    return folder / "raw"


def test_the_explorers_discovery_is_there_and_can_be_seen(tiny: Tiny) -> None:
    found = look(tiny.records)
    assert found.fault is None and found.warnings == []
    assert found.gain > 0.6 and found.seen > 0.6
    assert found.entropy[-1] < 0.3 and found.returns[-1] == pytest.approx(0.9, abs=0.05)


def test_a_source_that_acts_at_random_is_refused(tmp_path: Path) -> None:
    """Such were the first 160 steps of PPO, the only ones that the original trained on: entropy 1.609 of ln 5."""
    raw = collected(tmp_path, noise=1.0, episodes=8)
    records = parsed(raw, tmp_path / "parse")
    with pytest.raises(
        SlipwayError, match=r"does not learn in the histories that are shown.*There is nothing to distil"
    ) as told:
        WORKLOAD.facts(raw, records, WORKLOAD.Settings())
    assert "all its steps were made at random" in str(told.value) and "entropy" not in str(told.value)
    found = WORKLOAD.quality(records, WORKLOAD.Settings(), {}, tmp_path)
    assert any("no step is meant in the first episode, no step is meant in the last" in one for one in found["findings"])
    assert json.loads((tmp_path / "quality.json").read_text())["entropy"] == [None] * 8


def test_the_first_steps_of_ppo_are_refused(tmp_path: Path) -> None:
    """What the original trained on: its policies have hardly been taught yet."""
    raw = collected(tmp_path, source="ppo", num_tasks=10, num_samples=40, episodes=8, noise=0)
    with pytest.raises(SlipwayError, match=r"does not learn in .* entropy of its actions is 1\.\d+ of 1\.61 at the end"):
        WORKLOAD.facts(raw, parsed(raw, tmp_path / "parse"), WORKLOAD.Settings())


def test_random_actions_that_are_targets_have_the_entropy_of_chance(tmp_path: Path) -> None:
    raw = collected(tmp_path, noise=1.0, episodes=8, num_samples=3240)
    histories = Histories(raw)
    for part in histories.index["parts"]:
        array = np.array(histories.array(part))
        array[..., 3] = 0
        write_part(raw, part, array, np.load(raw / f"{part}.rows.npy"))
    assert look(parsed(raw, tmp_path / "parse")).entropy == pytest.approx([math.log(5)] * 8, abs=0.12)  # ten learners a task


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_chance_is_not_taken_for_a_habit_where_a_task_has_one_learner(tmp_path: Path, environment: str) -> None:
    """It stands on few cells twice, and whatever it does on the others looks as if it always did that: the explorer, which goes to
    new cells in its first episode, would have an entropy of 0.2 there."""
    found = {}
    for learners in (1, 8):
        tasks = {"environment": environment, "num_tasks": 50, "num_samples": 50 * learners, "episodes": 6, "noise": 0}
        found[learners] = look(parsed(collected(tmp_path / f"{learners}", **tasks), tmp_path / f"parse-{learners}"))
    assert math.isnan(found[1].entropy[0]) and found[8].entropy[0] > 0.5
    told = "unknown, for want of learners on each task, in the first episode"
    assert told in found[1].findings[1] and told not in found[8].findings[1]


def test_histories_whose_discovery_was_cut_away_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown from the fourth episode on, most goals are known from the start: a model learns to copy, not to explore."""
    raw = collected(tmp_path, episodes=8)
    index = json.loads((raw / "histories.json").read_text())
    for part in index["parts"]:
        write_part(raw, part, np.load(raw / f"{part}.npy")[:, 3:], np.load(raw / f"{part}.rows.npy"))
    (raw / "histories.json").write_text(json.dumps({**index, "episodes": 5}))
    WORKLOAD.facts(raw, parsed(raw, tmp_path / "parse"), WORKLOAD.Settings())
    assert "of the discoveries can be seen" in capsys.readouterr().err


def test_a_source_that_knows_the_task_is_warned_of(tmp_path: Path) -> None:
    raw = collected(tmp_path, source="noisy_optimum", episodes=24, num_samples=81, noise=0)
    found = look(parsed(raw, tmp_path / "parse"))
    assert any("the source knows the task" in one for one in found.warnings)
    assert any("no step is meant in the first episode" in one for one in found.findings)


def test_what_parse_refuses_is_reported_and_the_command_shows_that_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an older one of other histories; and once histories are accepted, theirs."""
    name, page = "algorithm_distillation", Path("data/parse/algorithm_distillation.refused/quality/quality.md")
    monkeypatch.chdir(tmp_path)

    def parse_histories(**settings: object) -> None:
        Path("params.yaml").write_text(json.dumps({name: {"download": {"num_samples": 324, "episodes": 8, **settings}}}))
        download.run(name)
        parse.run(name)

    def said() -> str:
        found = CliRunner().invoke(app, ["quality", name])
        assert found.exit_code == 0, found.output
        return found.output

    parse_histories()
    with pytest.raises(SlipwayError, match=rf"There is nothing to distil.*\. What the data are like is in {page}"):
        parse_histories(noise=1.0)
    assert "all its steps were made at random" in page.read_text() and "all its steps were made at random" in said()
    assert said().startswith("the stage parse refused these data:\n* return, as a share of the optimum: ")
    written = Path("data/quality") / name
    assert (written / "quality.md").read_text() == page.read_text() and json.loads((written / "quality.json").read_text())[
        "fault"
    ]
    parse_histories()
    assert not page.exists() and "refused" not in said() and not json.loads((written / "quality.json").read_text())["fault"]


def test_the_report_is_a_page_and_its_numbers(tiny: Tiny, tmp_path: Path) -> None:
    found = WORKLOAD.quality(tiny.records, tiny.settings, tiny.facts, tmp_path)
    assert json.loads((tmp_path / "quality.json").read_text())["findings"] == found["findings"]
    assert (tmp_path / "quality.md").read_text().count("\n| ") == 2 + 24
