"""The graph that the flows run is the one in dvc.yaml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contracts.errors import SlipwayError
from flows.graph import Stage, in_order, read_graph
from tests.flows.tiny_project import ROOT

STAGES = ["download", "parse", "prepare", "plan", "train", "evaluate", "export", "quantize", "report", "publish"]


def stage(name: str, *before: str) -> Stage:
    return Stage(f"{name}@w", name, before, 0, None)


def test_the_stages_come_in_the_order_of_the_graph_with_the_workload_that_params_lists_first(
    project: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project[0])
    workload, stages = read_graph(None)
    assert workload == "tiny"
    assert [one.address for one in stages] == ["fetch@tiny", "layout@tiny", "fit@tiny", "quantize@tiny"]
    fit = stages[2]
    assert (fit.before, fit.timeout_seconds, fit.metrics) == (("fetch", "layout"), 300.0, ("data/fit/tiny/result.json",))
    assert [one.name for one in stages if one.is_root] == ["fetch", "layout"]
    assert [one.address for one in read_graph("other")[1]][-1] == "quantize@other"


def test_a_workload_without_stages_is_refused_with_those_that_there_are(
    project: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project[0])
    with pytest.raises(SlipwayError, match=r"'nope'.*lists tiny, other"):
        read_graph("nope")


def test_a_broken_pipeline_is_refused_with_what_is_wrong(
    project: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project[0])
    (project[0] / "params.yaml").write_text("workloads: [tiny\n")
    with pytest.raises(SlipwayError, match="params.yaml"):
        read_graph(None)
    (project[0] / "dvc.yaml").unlink()
    with pytest.raises(SlipwayError, match="holds no dvc.yaml"):
        read_graph(None)


def test_after_orders_stages_that_do_not_depend_on_each_other() -> None:
    stages = {one.name: one for one in [stage("train", "parse", "plan"), stage("parse"), stage("plan", "parse")]}
    assert [one.name for one in in_order(stages)] == ["parse", "plan", "train"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage("a", "b")], "a comes after b, which is no stage"),
        ([stage("a", "b"), stage("b", "a")], "wait for each other: a, b"),
    ],
)
def test_an_order_that_cannot_be_is_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(SlipwayError, match=message):
        in_order({one.name: one for one in stages})


def test_every_stage_of_the_project_is_a_file_in_tasks_and_runs_in_the_order_of_the_house(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    for workload in ["segmentation"]:
        stages = read_graph(workload)[1]
        assert [one.name for one in stages] == STAGES
        assert all((ROOT / "tasks" / f"{one.name}.py").is_file() for one in stages)
        assert "plan" in next(one for one in stages if one.name == "train").before


def _imported_from_tasks(text: str) -> set[str]:
    """The modules of tasks/ that a file imports: "trained", "shipping/parity"."""
    found = re.findall(r"^ *from tasks\.([\w.]+) import \(?\s*(\w+)", text, re.MULTILINE)
    paths = ((module.replace(".", "/"), name) for module, name in found)
    return {path if (ROOT / "tasks" / f"{path}.py").is_file() else f"{path}/{name}" for path, name in paths}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_files_in_tasks_that_it_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    import yaml

    # Another plan is no reason to train again, nor are other checks before it, or other words on what was left unfinished.
    aside = {"plan", "preflight", "unfinished"} if name == "train" else set()
    wanted, new = {name}, [name]
    while new:
        found = _imported_from_tasks((ROOT / "tasks" / f"{new.pop()}.py").read_text()) - aside
        new += sorted(found - wanted)
        wanted |= found
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]["do"]["deps"]
    modules = {one.removeprefix("tasks/").removesuffix(".py") for one in listed if re.fullmatch(r"tasks/[\w/]+\.py", one)}
    assert modules == wanted - {"stage"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_part_of_params_that_bears_its_name(name: str) -> None:
    import yaml

    read = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][name]["do"].get("params", [])
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    if name not in ("plan", "report"):
        assert "${item}." + name in read
    for workload in params["workloads"]:
        assert {one.removeprefix("${item}.") for one in read} <= set(params[workload]), (
            "DVC refuses a parameter that is not there"
        )
