"""What every workload must do, because it exists: the README's commands, end to end on its own sample, in a copy of the project."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from contracts.workload import ROOT, load, names
from engine.normalization import KINDS
from flows.graph import read_graph, unchanged
from flows.results import metric_rows, publishing
from tests.engine.test_preflight import NAMES
from tests.readme import readme_command
from tests.workloads.captioning.test_opening import PAGE, said_by_the_lines_of

# One workload trains in several ranks, the others in one: on two they do in tests/test_every_backend.py. Two are not looked at
# before they train, the others are, as by default.
PLANS = {"segmentation": "{preflight: never}", "captioning": "{backend: single, preflight: never}"}
USUAL = "{backend: single}"
# What a preflight looks at beside the ranks.
BESIDE = ["time", "memory", "disk", "publishing", "export"]


def _copy_of_the_project(target: Path) -> Path:
    """The tracked files, as they are in the working tree, in a git repository of their own."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=target, check=True, capture_output=True)
    return target


def _said(project: Path, *command: str) -> str:
    """What a command printed; it must succeed. Prefect's home is one for all projects, as a user's is: its database is made once."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(project),
        "PREFECT_HOME": str(project.parents[1] / "prefect"),
        "COLUMNS": "200",
    }
    variables.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        command, cwd=project, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def moves(film: bytes) -> bool:
    """Whether these are the bytes of a GIF of several pictures, of which more than one is different."""
    with Image.open(io.BytesIO(film)) as opened:
        assert opened.format == "GIF"
        frames = [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(opened)]
    return len(frames) > 20 and len(set(frames)) > 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", names())
def test_the_whole_pipeline_runs_on_the_workloads_own_sample_through_both_doors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = _copy_of_the_project(tmp_path / "project")
    slipway, *run = readme_command(".venv/bin/slipway run segmentation")
    run = [name if word == "segmentation" else word for word in run]
    _said(project, slipway, "use", name, "small")
    params = project / "params.yaml"
    text = re.sub(r"(?m)^workloads: \[.*\]", f"workloads: [{name}]", params.read_text())
    text, num = re.subn(rf"(?ms)(^{name}:.*?^  plan: ){{}}", rf"\1{PLANS.get(name, USUAL)}", text)
    assert num == 1
    params.write_text(text)

    # One door makes it, the other finds nothing to do: segmentation comes through Prefect's, the others through DVC's, and are
    # asked about without a server.
    repro = readme_command(".venv/bin/dvc repro")
    made = _said(project, slipway, *run) if name == "segmentation" else _said(project, *repro)
    assert "PUBLISHED as v1" in made
    comparison = json.loads((project / "data" / "quantize" / name / "comparison.json").read_text())
    assert comparison["passed"]
    assert {"torch", "fp32", comparison["chosen"]} == {row["name"] for row in comparison["rows"]}
    assert (project / "data" / "report" / name / "report.html").stat().st_size > 10_000
    lock = (project / "dvc.lock").read_bytes()

    if name == "segmentation":
        assert "published: v1" in made and f"{comparison['chosen']} (ships)" in made
        assert f"report: {project / 'data' / 'report' / name / 'report.html'}" in made
        assert "up to date" in _said(project, *repro)
    else:
        monkeypatch.chdir(project)
        _, stages = read_graph(name)
        assert len(stages) == 10 and all(unchanged(stage.address) for stage in stages)
        assert metric_rows(stages) and publishing(name) == f"published: v1 at registry/{name}/v1"
    assert (project / "dvc.lock").read_bytes() == lock

    _said(project, *readme_command(".venv/bin/dvc plots show"))
    page = (project / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert f"Validation of {name}" in page and f'"field": "{load(name).metric.name}"' in page
    if name == "segmentation":
        assert "data/evaluate" in _said(project, *readme_command(".venv/bin/dvc metrics show"))
        _said(project, *readme_command(".venv/bin/dvc push"))
        assert any((project / ".slipway" / "remote" / "files").rglob("*"))
        assert "TRAINING PLAN" in _said(project, *readme_command(".venv/bin/slipway hardware"))

    raw = project / "data" / "download" / name / "raw"
    picture = next(path for path in raw.rglob("*") if path.suffix in load(name).raw.suffixes)
    (project / "my-pictures").mkdir()
    shutil.copy2(picture, project / "my-pictures")
    _said(project, *readme_command(".venv/bin/slipway predict my-pictures"))
    assert json.loads((project / "predictions" / "predictions.json").read_text())
    if name == "captioning":
        metrics = json.loads((project / "data" / "evaluate" / name / "metrics.json").read_text())
        scores = {"cider", "bleu4", "rouge1", "rouge2", "rougeL", "rougeLsum", "meteor_exact_stem"}
        assert scores <= set(metrics) and all(metrics[one] > 0 for one in ("cider", "rougeL", "meteor_exact_stem"))
        report = (project / "data" / "report" / name / "report.html").read_text(encoding="utf-8")
        assert "of unseen handwriting the encoder tells digit " in report and "ended at a training loss of " in report
        told = json.loads((project / "data" / "evaluate" / name / "details" / "told.json").read_text())
        assert told["without_before"] is None and "Before training and after" in report
        assert told["rows"] and any(row["before"] != row["after"] for row in told["rows"])
        for row in told["rows"]:
            assert all(html.escape(row[when], quote=False) in report for when in ("key", "before", "after"))
        _said(project, *readme_command(".venv/bin/slipway quality captioning"))
        assert json.loads((project / "data" / "quality" / name / "quality.json").read_text())
        _said(project, *readme_command(".venv/bin/slipway caption my-pictures"))
        assert json.loads((project / "captions.jsonl").read_text())["caption"]
        published = shutil.copytree(project / "registry" / "captioning" / "v1", project / "published")
        shutil.copy2(picture, published / "picture.png")
        merged, adapted = said_by_the_lines_of(PAGE.read_text(encoding="utf-8"), published)
        assert merged == adapted, "the captions of the published folder by transformers and by peft"
    if name == "segmentation":  # of the others the checks are made in tests/engine
        before = set(project.rglob("*"))
        checked = _said(project, *readme_command(".venv/bin/slipway preflight segmentation"))
        assert not {path for path in set(project.rglob("*")) - before if "__pycache__" not in path.parts}
        findings = re.findall(r"(?m)^(passed|failed|not applicable) +(.*?)  +(.*)", checked)
        assert {name for _, name, _ in findings} == {*NAMES, *BESIDE} and len(findings) == 15
        assert [name for state, name, _ in findings if state != "passed"] == ["teacher"]
        ranks = json.loads((project / "data" / "plan" / name / "plan.json").read_text())["ranks"]
        assert f"2 steps of {ranks} rank{'s' * (ranks > 1)}: every sample once" in checked
        assert "14 passed, 1 not applicable; the training takes about " in checked
    if name == "algorithm_distillation":
        report = (project / "data" / "report" / name / "report.html").read_text(encoding="utf-8")
        assert report.count("Learning in context, with frozen weights") and report.count("<svg") >= 2
        assert list((project / "data" / "report" / name / "charts").glob("*-learning-in-context-with-frozen-weights.png"))
        films = re.findall(r'src="data:image/gif;base64,([^"]+)"', report)
        assert films and all(moves(base64.b64decode(film)) for film in films)
        assert "written: data/quality/" in _said(project, slipway, "quality", name)
        assert re.search(r"\.0\.0 \(held out\): returns", _said(project, slipway, "rollout", "--no-films"))
        _said(project, *readme_command(".venv/bin/slipway rollout 8,8"))
        assert json.loads((project / "rollouts" / "rollouts.json").read_text())[0]["returns"]
        assert list((project / "rollouts").glob("*.gif"))


@pytest.mark.parametrize("name", names())
def test_every_method_of_the_protocol_is_there(name: str) -> None:
    from contracts.workload import Workload

    missing = [method for method in vars(Workload) if not method.startswith("_") and not hasattr(load(name), method)]
    assert not missing


@pytest.mark.parametrize("name", names())
def test_the_settings_have_defaults_that_hold(name: str) -> None:
    settings = load(name).Settings()
    assert settings.train.global_batch % settings.train.ghost_batch == 0


def test_ghost_layers_exist_for_every_batch_norm_of_torch() -> None:
    from torch import nn

    assert set(KINDS) == {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
