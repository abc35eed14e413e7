"""Which runs are one and the same: what decides what is learnt is in a run's name, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts import workload
from contracts.errors import SlipwayError
from contracts.files import write_json
from contracts.plan import Plan
from contracts.run import RunResult, RunSpec
from contracts.workload import load
from engine.checkpoint import Checkpoints
from engine.loop import Loop
from tasks import train as train_stage
from tasks.train import collect
from tasks.training import training_run
from tasks.unfinished import announce
from tests.engine.tiny_ranks import join_the_house
from tests.engine.tiny_workload import NAME, write_rows

STEPS = 4


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose tiny workload is parsed and prepared."""
    join_the_house(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    write_rows(Path("data/parse") / NAME, num_train=32, num_val=8)
    for stage in ("parse", "prepare"):
        write_json(Path("data") / stage / NAME / "facts.json", {})


def run_of(*, micro_batch: int = 4, **train: Any) -> RunSpec:
    settings = load(NAME).Settings.model_validate({"train": {"global_batch": 8, "ghost_batch": 2, **train}})
    return training_run(NAME, settings, Plan("single", "cpu", 1, micro_batch, 8 // micro_batch, 1, 0, 2, "fp32", {}))


def test_other_settings_of_train_are_another_run_that_trains_its_own_steps(train: Callable[[RunSpec], RunResult]) -> None:
    runs = [run_of(), run_of(learning_rate=0.02), run_of(epochs=2), run_of(seed=1)]
    assert len({run.output for run in runs}) == len({run.fingerprint for run in runs}) == len(runs)
    found = [train(run) for run in runs]
    assert [one.resumed_from for one in found] == [0, 0, 0, 0]
    assert [one.steps for one in found] == [STEPS, STEPS, 2 * STEPS, STEPS]
    again = train(run_of())
    assert (again.resumed_from, again.steps) == (STEPS, STEPS), "the same settings are the same run, and it is over"


def test_the_best_weights_that_were_damaged_are_not_collected(train: Callable[[RunSpec], RunResult], tmp_path: Path) -> None:
    result, best = train(run_of()), Path(run_of().output) / "best.safetensors"
    content = bytearray(best.read_bytes())
    content[-1] ^= 1
    best.write_bytes(content)
    with pytest.raises(SlipwayError, match=f"{best} is damaged .*: restore it, or remove {best.parent} and train again"):
        collect(run_of(), result, target=tmp_path / "train")
    assert not (tmp_path / "train").exists()


def test_what_learns_nothing_else_is_the_same_run() -> None:
    same = [run_of(), run_of(micro_batch=2), run_of(checkpoint_minutes=1), run_of(keep_checkpoints=5)]
    assert len({run.fingerprint for run in same}) == 1


def test_other_code_of_the_workload_is_another_run_and_its_checkpoints_are_refused_with_both_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[[RunSpec], RunResult]
) -> None:
    monkeypatch.setattr(workload, "ROOT", tmp_path)
    source = tmp_path / "workloads" / NAME / "model" / "blocks.py"
    source.parent.mkdir(parents=True)
    source.write_text("NUM_BLOCKS = 2\n")
    before = run_of()
    source.write_text("NUM_BLOCKS = 3\n")
    after = run_of()
    assert before.fingerprint != after.fingerprint and before.output != after.output
    train(before)
    with pytest.raises(SlipwayError, match=f"fingerprint is {before.fingerprint}, this run's is {after.fingerprint}"):
        Loop(replace(after, output=before.output)).run()
    source.write_text("NUM_BLOCKS = 2\n")
    assert run_of().fingerprint == before.fingerprint


def test_code_is_every_file_of_the_workload_but_presets_and_what_is_written_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network may be a YAML file, whose edit keeps the shapes of the weights."""
    monkeypatch.setattr(workload, "ROOT", tmp_path)
    here = tmp_path / "workloads" / NAME
    code = ["__init__.py", "models/net.yaml", "words.txt"]
    for name in [*code, "presets/small.yaml", "docs/page.md", "README.md", "__pycache__/a.pyc", ".cache/b", "words.txt~"]:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    assert sorted(workload.code_of(NAME)) == code
    before = run_of().fingerprint
    (here / "presets" / "small.yaml").write_text("train: {epochs: 2}")
    assert run_of().fingerprint == before
    (here / "models" / "net.yaml").write_text("activation: ReLU")
    assert run_of().fingerprint != before


def test_other_records_or_facts_are_another_run() -> None:
    runs = [run_of()]
    write_json(Path("data/prepare") / NAME / "facts.json", {"prepared": "elsewhere"})
    runs.append(run_of())
    (Path("data/parse") / NAME / "records.arrow").unlink()
    write_rows(Path("data/parse") / NAME, num_train=31, num_val=9)
    runs.append(run_of())
    assert len({run.fingerprint for run in runs}) == len(runs)


def left_at(spec: RunSpec, step: int) -> RunSpec:
    """The run, begun and left after some steps."""
    announce(spec)
    checkpoints = Checkpoints(Path(spec.output) / "checkpoints", fingerprint=spec.fingerprint)
    checkpoints.save(step, {})
    checkpoints.wait()
    return spec


def test_a_training_that_begins_anew_says_what_sets_it_apart_from_an_unfinished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workload, "ROOT", tmp_path)
    source = tmp_path / "workloads" / NAME / "model.py"
    source.parent.mkdir(parents=True)
    source.write_text("NUM_BLOCKS = 2\n")
    before = left_at(run_of(learning_rate=0.02), 700)
    announce(before)
    assert capsys.readouterr().out == "", "nothing is left behind by a run that goes on"
    source.write_text("NUM_BLOCKS = 3\n")
    write_json(Path("data/prepare") / NAME / "facts.json", {"prepared": "elsewhere"})
    after = run_of(learning_rate=0.01)
    announce(after)
    said = capsys.readouterr().out
    assert (
        f"an unfinished training of 700 steps is left in {before.output}, whose fingerprint is {before.fingerprint[:12]}"
        in said
    )
    assert f"begins at step 0, as fingerprint {after.fingerprint[:12]}" in said
    assert "settings of train (learning_rate 0.02, now 0.01); data (facts); code of the workload (model.py)." in said
    Path(before.output, "result.json").touch()
    announce(after)
    assert capsys.readouterr().out == "", "the other one is over"


def test_the_stage_says_so_before_it_checks_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise SlipwayError("checked")

    left_at(run_of(), 700)
    Path("params.yaml").write_text(f"{NAME}:\n  train: {{global_batch: 8, ghost_batch: 2, seed: 1}}\n")
    monkeypatch.setattr(train_stage, "before_training", refuse)
    with pytest.raises(SlipwayError, match="checked"):
        train_stage.run(NAME)
    assert "what differs: settings of train (seed 0, now 1)" in capsys.readouterr().out
