"""`slipway use`: presets go into params.yaml and comments stay."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.use import enlist, presets_of, use
from contracts.errors import SlipwayError
from contracts.records import split_of
from contracts.workload import load, names, settings_of
from tests.readme import ROOT, readme_command

PRESETS = [(workload, preset) for workload in names() for preset in presets_of(workload)]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's params.yaml as it is shipped, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    preset = presets_of("segmentation")["default"].read_text(encoding="utf-8")
    section = "".join(f"  {line}\n" for line in preset.splitlines() if not line.startswith("#"))
    text = f"# Mine.\n\nworkloads: [segmentation]          # run these\n\nsegmentation:\n{section}"
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def content(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("workload", "preset"), PRESETS)
def test_every_preset_is_valid_and_goes_in(params: Path, workload: str, preset: str) -> None:
    use(workload, preset)
    wanted = content(presets_of(workload)[preset])
    assert {stage: content(params)[workload][stage] for stage in wanted} == wanted
    settings_of(workload)


@pytest.mark.parametrize("workload", names())
def test_the_preset_default_is_the_section_as_shipped(workload: str) -> None:
    """The user's own edits of params.yaml are no fault: then the committed file is looked at."""
    default = content(presets_of(workload)["default"])
    committed = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, text=True, check=False)
    shipped = [content(ROOT / "params.yaml")]
    shipped += [yaml.safe_load(committed.stdout)] if committed.returncode == 0 else []
    assert default in [params.get(workload) for params in shipped]


def test_the_command_of_the_readme_writes_the_real_preset(params: Path) -> None:
    command = readme_command(".venv/bin/slipway use segmentation epri")
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=params.parent, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = content(presets_of("segmentation")["epri"])
    assert {stage: content(params)["segmentation"][stage] for stage in wanted} == wanted


def test_there_and_back_again_changes_nothing_to_the_letter(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = params.read_text(encoding="utf-8")
    use("segmentation", "epri")
    between = params.read_text(encoding="utf-8")
    for comment in ("# Mine.", "# run these", "# whatever the hardware", "# how much faster than fp32"):
        assert comment in between
    out = capsys.readouterr().out
    assert "segmentation.train.model: digits-seg -> yolov8m-seg.pt" in out and "now uses the preset epri" in out
    use("segmentation", "default")
    assert params.read_text(encoding="utf-8") == before
    capsys.readouterr()
    use("segmentation")
    assert "already used the preset default" in capsys.readouterr().out


def test_a_stage_that_the_preset_does_not_name_stays_the_users(params: Path) -> None:
    text = params.read_text(encoding="utf-8").replace("target: file://registry", "target: hf://me/model  # mine")
    params.write_text(text, encoding="utf-8")
    use("segmentation", "epri")
    assert "target: hf://me/model  # mine" in params.read_text(encoding="utf-8")


OWN = "target: hf://me/model  # mine\n    license: mit"


@pytest.mark.parametrize(("workload", "preset"), PRESETS)
@pytest.mark.parametrize(
    "publish", [f"\n    {OWN}\n    least: {{speed: 9}}  # of mine", " {target: hf://me/model, license: mit}"]
)
def test_where_a_model_goes_is_the_users_and_limits_are_the_presets(
    params: Path, workload: str, preset: str, publish: str
) -> None:
    params.write_text(f"{workload}:\n  publish:{publish}\n", encoding="utf-8")
    own, told = content(params)[workload]["publish"], content(presets_of(workload)[preset]).get("publish", {})
    use(workload, preset)
    found = content(params)[workload]["publish"]
    limits = {name: value for name, value in {**own, **told}.items() if name == "least"}
    assert found == {"target": "hf://me/model", "license": "mit", **limits}
    assert ("# mine" in params.read_text(encoding="utf-8")) == ("# mine" in publish)


def test_no_preset_leaves_publish_empty_as_if_it_meant_something() -> None:
    assert not [one for one in PRESETS if content(presets_of(one[0])[one[1]]).get("publish") == {}]


def test_the_files_own_manner_stays(params: Path) -> None:
    params.write_bytes(
        b"other:   # theirs\r\n    list:\r\n    - 1\r\n    - 'two'\r\n    empty: null\r\n    deep: {a: 1}\r\nsegmentation:\r\n    train:\r\n        seed: 7\r\n"
    )
    params.chmod(0o640)
    use("segmentation", "epri")
    after = params.read_bytes()
    assert b"other:   # theirs\r\n    list:\r\n    - 1\r\n    - 'two'\r\n    empty: null\r\n    deep: {a: 1}\r\n" in after
    assert b"\n" not in after.replace(b"\r\n", b"") and b"\r\n        seed: 0\r\n" in after
    assert content(params)["workloads"] == ["segmentation"] and params.stat().st_mode & 0o777 == 0o640


def test_a_file_without_the_section_gets_it(params: Path) -> None:
    params.write_text("workloads: []  # none yet\n", encoding="utf-8")
    use("segmentation", "default")
    assert content(params)["workloads"] == ["segmentation"] and "# none yet" in params.read_text(encoding="utf-8")
    assert content(params)["segmentation"] == content(presets_of("segmentation")["default"])


@pytest.mark.parametrize(
    ("workload", "preset", "words"),
    [
        ("segmentation", "nothing", "no preset 'nothing'; there are: default, epri"),
        ("nothing", "default", "there is no workload 'nothing'"),
    ],
)
def test_an_unknown_name_is_answered_with_those_there_are(params: Path, workload: str, preset: str, words: str) -> None:
    before = params.read_text(encoding="utf-8")
    with pytest.raises(SlipwayError, match=re.escape(words)):
        use(workload, preset)
    assert params.read_text(encoding="utf-8") == before


def test_nothing_is_written_when_the_result_would_be_invalid(params: Path) -> None:
    broken = params.read_text(encoding="utf-8").replace("target: file://registry", "targte: file://registry")
    params.write_text(broken, encoding="utf-8")
    with pytest.raises(SlipwayError, match=r"segmentation.publish.targte: no such setting"):
        use("segmentation", "epri")
    assert params.read_text(encoding="utf-8") == broken


def test_a_link_to_the_file_stays_a_link(params: Path, tmp_path: Path) -> None:
    link = tmp_path / "linked.yaml"
    link.symlink_to("params.yaml")
    use("segmentation", "epri", params=link)
    assert link.is_symlink() and content(params)["segmentation"]["train"]["model"] == "yolov8m-seg.pt"


def test_the_circuits_of_epri_fill_every_split() -> None:
    preset = content(presets_of("segmentation")["epri"])
    settings = load("segmentation").Settings.model_validate(preset)
    pattern = settings.parse.group_pattern  # pyright: ignore[reportAttributeAccessIssue]
    images = [f"{source.into}/1 (950).JPG" for source in settings.download.sources if source.into != "."]
    groups = [found.group(1) for image in images if (found := re.search(pattern, image))]
    splits = [split_of(group, settings.parse.shares) for group in groups]
    assert len(set(groups)) == len(images) and sorted(set(splits)) == ["test", "train", "val"] and splits.count("train") == 3


def test_a_workload_that_is_run_is_listed_and_nothing_else_changes(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use("captioning", "small")
    text = params.read_text(encoding="utf-8").replace("[segmentation, captioning]", "[segmentation]")
    params.write_text(text, encoding="utf-8")
    before = content(params)
    capsys.readouterr()
    enlist("captioning")
    assert content(params) == {**before, "workloads": ["segmentation", "captioning"]}
    assert "# run these" in params.read_text(encoding="utf-8")
    assert "workloads lists captioning now" in capsys.readouterr().out
    listed = params.read_bytes()
    enlist("captioning")
    assert params.read_bytes() == listed


def test_a_workload_without_a_section_gets_its_default_and_one_that_does_not_exist_nothing(params: Path) -> None:
    enlist("captioning")
    assert content(params)["captioning"] == content(presets_of("captioning")["default"])
    before = params.read_bytes()
    enlist("no-such-workload")
    assert params.read_bytes() == before
