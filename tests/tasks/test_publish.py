"""The publish stage: against real folders, a real in-memory store and a server that speaks the hub's own protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from contracts.settings import PublishSettings
from contracts.workload import Metric
from tasks import publish
from tasks.downloading import fetching
from tasks.publishing import hub
from tasks.publishing.registry import LocalRegistry, StoreRegistry, Version, decide, open_registry
from tasks.publishing.release import Release, published_settings
from tests.tasks.hub_server import HubServer

ROOT = Path(__file__).parents[2]
METRIC = "mask_map50_95"
# huggingface_hub 2.4 uploads by a parameter that its own HTTP client deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
RECEIPT = Path("data/publish/segmentation/receipt.json")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder as it stands before publish."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(hub, "FIRST_PAUSE", 0.001)
    stages(value=0.7)
    target("file://registry")
    return folder


def target(address: str, **more: Any) -> None:
    sources = [{"address": "https://user:pass@host/data.zip?sig=SECRETSIGNATURE"}, {"address": "/home/somebody/photos"}]
    section = {"download": {"sources": sources}, "publish": {"target": address, **more}}
    Path("params.yaml").write_text(json.dumps({"segmentation": section}), encoding="utf-8")


def stages(*, value: float, weights: bytes = b"weights", chosen: str = "int8", beside: float = 0.93) -> None:
    """What the stages before leave, with `value` as the metric of what ships and `beside` as another of its metrics."""
    data = Path("data")
    artifact = {
        "workload": "segmentation",
        "recipe": chosen,
        "facts": {"classes": ["a"]},
        "preprocessing": {"segment": {"pad": 114}},
        "graphs": {
            "segment": {
                "file": "graphs/segment.onnx",
                "inputs": {"images": {"dtype": "uint8", "shape": ["batch", 8]}},
                "outputs": ["out"],
            }
        },
        "settings": {"download": {"sources": [{"address": "https://host/data.zip?sig=SECRETSIGNATURE"}]}},
    }
    rows = [
        {"name": name, "metric": metric, "bytes": 1000, "latency_ms": 2.5, "metrics": {METRIC: metric, "mask_map50": other}}
        for name, metric, other in (("torch", 0.71, 0.95), ("fp32", 0.71, 0.95), (chosen, value, beside))
    ]
    write_json(data / "quantize/segmentation/artifact.json", artifact)
    write_json(
        data / "quantize/segmentation/comparison.json", {"chosen": chosen, "metric": METRIC, "rows": rows, "passed": True}
    )
    write_json(data / "export/segmentation/parity.json", {"passed": True})
    write_json(data / "evaluate/segmentation/metrics.json", {METRIC: 0.71, "mask_map50": 0.95, "num": 250})
    sources = [{"address": "https://host/data.zip?sig=SECRETSIGNATURE"}, {"address": "/home/somebody/photos"}]
    write_json(data / "download/segmentation/download.json", {"sources": sources})
    write_json(data / "train/segmentation/model/spec.json", {"plan": {"ranks": 1}, "root": "/home/somebody"})
    for name, content in {
        "quantize/segmentation/graphs/segment.onnx": b"graph of " + weights,
        "train/segmentation/model/weights.safetensors": weights,
        "train/segmentation/model/best.pt": b"best " + os.urandom(8),
        "train/segmentation/model/last.pt": b"last",
        "report/segmentation/report.md": b"# segmentation\n\n![curves](plots/curves.png)\n\n```\n# no heading\n```\n",
        "report/segmentation/plots/curves.png": b"png",
        "report/segmentation/report.html": b"html",
        "export/segmentation/layout/elsewhere/onnx/model.onnx": b"the same for other tools",
    }.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)


def empty_store() -> Any:
    memory = fsspec.filesystem("memory")
    if memory.exists("/models"):
        memory.rm("/models", recursive=True)
    target("memory://models")
    return memory


def run() -> dict[str, Any]:
    publish.run("segmentation")
    return read_json(RECEIPT)


def latest() -> dict[str, Any]:
    return read_json(Path("registry/segmentation/latest.json"))


# What is published


def test_one_folder_holds_all_that_belongs_to_the_model_and_nothing_of_the_machine() -> None:
    receipt = run()
    home = Path(receipt["location"])
    files = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "artifact.json",
        "best.pt",
        "comparison.json",
        "elsewhere/onnx/model.onnx",
        "graphs/segment.onnx",
        "lineage.json",
        "metrics.json",
    } | {
        "parity.json",
        "plots/curves.png",
        "report.md",
        "weights.safetensors",
    }
    assert {file["path"] for file in receipt["files"]} == files
    assert all((home / file["path"]).stat().st_size == file["bytes"] for file in receipt["files"])
    for path in home.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"SECRETSIGNATURE" not in content and b"user:pass" not in content and b"somebody" not in content
    assert "SECRETSIGNATURE" not in RECEIPT.read_text(encoding="utf-8")


def test_models_in_folders_are_published_by_the_folders_own_names() -> None:
    place = "/home/somebody/models/sees"
    artifact = read_json(Path("data/quantize/segmentation/artifact.json"))
    hub, local = {"name": "org/words", "revision": "c"}, {"name": place, "revision": None, "config": {}}
    artifact["facts"] |= {"encoder": local, "decoder": hub, "classes": ["/m/01g317"]}
    artifact["settings"]["train"] = {"model": f"{place}/own.pt"}
    write_json(Path("data/quantize/segmentation/artifact.json"), artifact)
    params = json.loads(Path("params.yaml").read_text())
    params["segmentation"] |= {"train": {"model": f"{place}/own.pt"}, "plan": {"accelerate_config": f"{place}/all.yaml"}}
    Path("params.yaml").write_text(json.dumps(params))
    home = Path(run()["location"])
    told, lineage = (read_json(home / name) for name in ("artifact.json", "lineage.json"))
    assert told["facts"] == {"encoder": {**local, "name": "sees"}, "decoder": hub, "classes": ["/m/01g317"]}
    assert told["settings"]["train"]["model"] == lineage["params"]["train"]["model"] == "own.pt"
    assert lineage["params"]["plan"]["accelerate_config"] == "all.yaml"
    assert not [path for path in home.rglob("*") if path.is_file() and b"somebody" in path.read_bytes()]
    captioning = {"prepare": {"encoder": local, "decoder": hub}, "evaluate": {"clip": {**local, "name": "~/clip"}}}
    cleaned = published_settings(captioning)
    assert cleaned["prepare"] == {"encoder": {**local, "name": "sees"}, "decoder": hub}
    assert cleaned["evaluate"] == {"clip": {**local, "name": "clip"}}


def test_the_card_is_made_of_measured_numbers_and_its_front_matter_is_the_hubs(project: Path) -> None:
    card = (Path(run()["location"]) / "README.md").read_text(encoding="utf-8")
    _, header, page = card.split("---\n", 2)
    front = yaml.safe_load(header)
    assert front["license"] == "agpl-3.0" and {"slipway", "segmentation", "onnx", "int8"} <= set(front["tags"])
    measured = front["model-index"][0]["results"][0]
    assert measured["metrics"][0] == {"type": METRIC, "value": 0.7, "name": f"{METRIC} (int8, as shipped)"}
    assert measured["metrics"][1:] == [{"type": "mask_map50", "value": 0.93, "name": "mask_map50 (int8, as shipped)"}]
    assert measured["dataset"]["name"] == "data.zip, photos"
    assert f"(`int8`): {METRIC} 0.7000 on the test split" in page and "| python | 3." in page
    assert "## Report" in page and "\n# no heading\n" in page and "{{" not in page
    assert (
        front["library_name"] == "ultralytics" and front["pipeline_tag"] == measured["task"]["type"] == "image-segmentation"
    )
    from huggingface_hub import ModelCard

    known: Any = ModelCard(card).data  # raises on an index that the hub would not take
    assert known.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.7
    assert known.eval_results and {one.metric_type for one in known.eval_results} == {METRIC, "mask_map50"}


def test_a_captioners_page_names_its_base_models_and_data_and_no_licence_that_nobody_stated(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    from tasks.publishing.card import card_of, front_matter, write_card

    (tmp_path / "metrics.json").write_text(json.dumps({"cider": 0.5, "bleu4": 0.25, "num": 3}))
    (tmp_path / "report.md").write_text("# captioning\n")
    comparison = {"chosen": "int8_dynamic", "rows": [{"name": "int8_dynamic", "metric": 0.49}]}
    write_json(tmp_path / "comparison.json", comparison)
    commit, config = "0123456789" * 4, {"image_size": 32, "patch_size": 16, "hidden_size": 8}
    facts = {
        "encoder": {"name": "google/siglip-base-patch16-224", "revision": commit, "config": config, "sha256": None},
        "decoder": {"name": "models/own", "revision": None, "sha256": "ab"},
    }
    artifact = {"settings": {}, "facts": facts, "graphs": {}}
    sources = [{"address": "hf://datasets/Mozilla/coco-gpt4o"}, {"address": "https://host/x.zip"}]
    lineage = {"data": {"sources": sources}, "git": None, "python": "3", "packages": {}}
    release = Release(tmp_path, "captioning", "f", "cider", 0.49)
    for stated, shown, words in ((None, "unknown", "not stated"), ("cc-by-4.0", "cc-by-4.0", "| licence | cc-by-4.0 |")):
        write_card(release, name="name", artifact=artifact, lineage=lineage, license=stated)
        page = (tmp_path / "README.md").read_text()
        known: Any = ModelCard(page).data
        assert known.license == shown and words in page and "AutoProcessor" in page
        assert known.library_name == "transformers" and known.pipeline_tag == "image-to-text"
        assert known.base_model == ["google/siglip-base-patch16-224"] and known.datasets == ["Mozilla/coco-gpt4o"]
        assert known.eval_results and known.eval_results[0].metric_value == 0.49
    pooled = card_of("captioning", artifact | {"settings": {"train": {"prefix_tokens": 1}}})
    told = {"comparison": comparison, "metrics": {}, "lineage": lineage}
    assert (
        front_matter(release, name="name", told=pooled, **told)["library_name"] == "onnx"
        and "AutoProcessor" not in pooled.use
    )


def test_the_lineage_names_code_data_settings_and_plan(project: Path) -> None:
    lock = {
        "stages": {
            "train@segmentation": {"deps": [{"path": "a", "md5": "1"}], "outs": [{"path": "b", "md5": "2.dir"}]},
            "train@other": {},
        }
    }
    (project / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, cwd=project)
    (project / ".gitignore").write_text("data\nregistry\n.gitignore\n", encoding="utf-8")
    lineage = read_json(Path(run()["location"]) / "lineage.json")
    assert len(lineage["git"]["revision"]) == 40 and lineage["git"]["changed"] is False
    assert lineage["dvc"] == {"train@segmentation": {"deps": {"a": "1"}, "outs": {"b": "2.dir"}}}
    assert (
        lineage["plan"] == {"ranks": 1}
        and lineage["params"]["train"]["global_batch"]
        and "onnxruntime" in lineage["packages"]
    )
    (project / "changed.py").write_text("", encoding="utf-8")
    stages(value=0.8, weights=b"new")
    assert read_json(Path(run()["location"]) / "lineage.json")["git"]["files"] == ["changed.py"]


# Gates


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("export/segmentation/parity.json", {"passed": False}, "differs from torch"),
        ("export/segmentation/parity.json", {"passed": "yes"}, "differs from torch"),
        ("export/segmentation/parity.json", None, "is missing: run python -m tasks.export"),
        ("quantize/segmentation/comparison.json", {"passed": False}, "worse than torch beyond the budget"),
        ("quantize/segmentation/comparison.json", {"passed": False, "reason": f"its {METRIC} is 0"}, f"its {METRIC} is 0"),
        (
            "quantize/segmentation/comparison.json",
            {"rows": [{"name": "int8", "metric": 0.0}]},
            f"int8 on test: its {METRIC} is 0, so it has learnt nothing",
        ),
        ("quantize/segmentation/comparison.json", None, "is missing: run python -m tasks.quantize"),
        ("quantize/segmentation/comparison.json", {"chosen": "fp16"}, "chose fp16, the artifact is int8"),
        ("quantize/segmentation/comparison.json", {"metric": "loss"}, "compares loss, the workload is judged by"),
        ("quantize/segmentation/comparison.json", {"rows": []}, "no row for 'int8'"),
        ("quantize/segmentation/comparison.json", {"rows": [{"name": "int8", "metric": None}]}, "has None as the"),
        ("quantize/segmentation/graphs/segment.onnx", None, "segment.onnx is missing"),
        ("train/segmentation/model/weights.safetensors", None, "weights.safetensors is missing"),
        ("evaluate/segmentation/metrics.json", None, "metrics.json is missing"),
        ("report/segmentation/report.md", None, "report.md is missing"),
    ],
)
def test_what_failed_a_gate_or_is_incomplete_is_an_error_and_nothing_is_written(
    path: str, change: dict[str, Any] | None, words: str
) -> None:
    file = Path("data") / path
    if change is None:
        file.unlink()
    else:
        write_json(file, {**read_json(file), **change})
    with pytest.raises(SlipwayError, match=words):
        run()
    assert not RECEIPT.exists() and not list(Path("registry").rglob("latest.json"))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"least": {METRIC: 0.705}}, f"on test {METRIC} is 0.7, publish.least asks for at least 0.705"),
        ({"least": {"mask_map50": 0.94}}, "mask_map50 is 0.93, publish.least asks for at least 0.94"),
        ({"most": {"mask_map50": 0.9}}, "mask_map50 is 0.93, publish.most asks for at most 0.9"),
        ({"least": {"cider": 0.1}}, f"publish.least names cider, which is none of {METRIC}, mask_map50, num"),
    ],
)
def test_a_model_beyond_a_limit_that_was_set_is_not_published(limits: dict[str, Any], words: str) -> None:
    target("file://registry", **limits)
    with pytest.raises(SlipwayError, match=words):
        run()
    assert not RECEIPT.exists()
    target("file://registry", least={METRIC: 0.7, "mask_map50": 0.93}, most={"mask_map50": 0.93})
    assert run()["published"]


def test_where_one_metric_of_what_ships_is_known_the_others_are_said_to_be_torchs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = Path("data/quantize/segmentation/comparison.json")
    comparison = read_json(place)
    for row in comparison["rows"]:
        del row["metrics"]
    write_json(place, comparison)
    target("file://registry", least={"mask_map50": 0.95})
    home = Path(run()["location"])
    assert f"{place} has one metric of int8, which ships: its others are taken to be torch's" in capsys.readouterr().out
    assert "mask_map50 (torch)" in (home / "README.md").read_text(encoding="utf-8")


def test_a_limit_of_what_these_data_cannot_have_limits_nothing_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    target("file://registry", least={"cider": 0.1})
    write_json(Path("data/evaluate/segmentation/details/scores.json"), {"elsewhere": {"cider": "nobody says anything"}})
    assert run()["published"]
    assert "the limit of cider (publish) limits nothing here: nobody says anything" in capsys.readouterr().out


def test_a_model_that_is_not_better_is_not_published_and_that_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run()["version"] == "v1"
    stages(value=0.69, weights=b"worse")
    receipt = run()
    assert receipt["published"] is False and "does not beat the 0.7000 of v1" in receipt["reason"]
    assert "NOT PUBLISHED" in capsys.readouterr().out and latest()["version"] == "v1"
    stages(value=0.71, weights=b"better")
    assert run()["version"] == "v2" == latest()["version"]


def test_the_same_model_again_changes_nothing() -> None:
    run()
    stages(value=0.7)  # best.pt is another file each time; it does not make another model
    receipt = run()
    assert receipt["published"] is False and "same model is there already, as v1" in receipt["reason"]
    assert sorted(path.name for path in Path("registry/segmentation").iterdir()) == [".lock", "latest.json", "v1"]


@pytest.mark.parametrize(
    ("higher", "new", "better"), [(True, 2.0, True), (True, 1.0, False), (False, 0.5, True), (False, 2.0, False)]
)
def test_better_means_what_the_workloads_metric_says(tmp_path: Path, higher: bool, new: float, better: bool) -> None:
    release = Release(tmp_path, "w", "new", "m", new)
    assert decide(release, Version("v1", "old", "m", 1.0), Metric("m", higher))[0] is better
    wanted, reason = decide(release, Version("v1", "old", "other", 1.0), Metric("m", higher))
    assert not wanted and "cannot be compared" in reason


# The local registry


def test_a_crash_in_the_middle_leaves_the_old_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    stages(value=0.8, weights=b"new")

    def crash(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.publishing.registry.write_json", crash)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert latest()["version"] == "v1"
    Path("registry/segmentation/.v.1.partial").mkdir()
    assert run()["version"] == "v3" == latest()["version"]
    assert not list(Path("registry/segmentation").glob(".v*"))


def test_publishers_at_the_same_time_make_whole_versions_and_the_best_is_the_latest(tmp_path: Path) -> None:
    def one(number: int) -> None:
        folder = tmp_path / f"release{number}"
        folder.mkdir()
        (folder / "model.bin").write_text(str(number), encoding="utf-8")
        release = Release(folder, "segmentation", f"model{number}", METRIC, number / 10)
        results.append(publish.publish(release, LocalRegistry(tmp_path / "shared")))

    results: list[dict[str, Any]] = []
    threads = [threading.Thread(target=one, args=(number,)) for number in (3, 8, 1, 5, 2, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pointer = read_json(tmp_path / "shared" / "latest.json")
    assert len(results) == 6 and pointer["value"] == 0.8
    published = [result["version"] for result in results if result["published"]]
    assert len(set(published)) == len(published) == len(list((tmp_path / "shared").glob("v*")))
    assert (tmp_path / "shared" / pointer["version"] / "model.bin").read_text(encoding="utf-8") == "8"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is damaged"),
        (b"{}", "is damaged"),
        (b'{"version": "v9", "model": "", "metric": "", "value": 1}', "not there"),
    ],
)
def test_a_damaged_pointer_is_named(content: bytes, words: str) -> None:
    run()
    Path("registry/segmentation/latest.json").write_bytes(content)
    with pytest.raises(SlipwayError, match=f"latest.json.*{words}"):
        run()


@pytest.mark.parametrize(
    ("address", "more", "words"),
    [
        ("https://host/x", {}, "a web address cannot be written to"),
        ("hf://a/b/c", {}, "use hf://organisation/name"),
        ("file://registry", {"name": "../up"}, "publish.name = '../up'"),
        ("carrier-pigeon://coop", {}, "nothing opens carrier-pigeon"),
    ],
)
def test_a_target_that_cannot_be_is_refused(address: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(SlipwayError, match=words):
        open_registry(PublishSettings(target=address, **more), workload="segmentation")


def test_a_dry_run_says_what_would_happen_and_writes_nothing(project: Path) -> None:
    before = sorted(project.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tasks.publish", "segmentation", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=project, check=True)
    assert "graphs/segment.onnx" in done.stdout and "registry/segmentation can be written" in done.stdout
    assert "would be published to file://registry, for it is the first version there" in done.stdout
    assert sorted(project.rglob("*")) == before
    write_json(project / "data/export/segmentation/parity.json", {"passed": False})
    failed = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=project, check=False)
    assert (
        failed.returncode == 1
        and failed.stderr.startswith("error: segmentation is not published")
        and "Traceback" not in failed.stderr
    )


def test_a_dry_run_sees_a_target_that_cannot_be_written(project: Path) -> None:
    (project / "registry").write_text("a file", encoding="utf-8")
    with pytest.raises(SlipwayError, match="no folder"):
        publish.rehearse("segmentation")


# What fsspec opens


def test_a_store_gets_the_pointer_last_and_only_when_nobody_was_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = empty_store()
    receipt = run()
    assert (
        receipt["version"].startswith("v1-") and receipt["location"] == f"memory://models/segmentation/{receipt['version']}"
    )
    assert memory.cat(f"/models/segmentation/{receipt['version']}/weights.safetensors") == b"weights"
    assert run()["published"] is False
    stages(value=0.75, weights=b"mine")
    check, theirs = StoreRegistry._next, {"version": "v2-theirs", "model": "theirs", "metric": METRIC, "value": 0.8}

    def overtaken(registry: StoreRegistry) -> int:
        memory.pipe_file("/models/segmentation/latest.json", json.dumps(theirs).encode())
        return check(registry)

    monkeypatch.setattr(StoreRegistry, "_next", overtaken)
    receipt = run()
    assert receipt["published"] is False and "does not beat the 0.8000 of v2-theirs" in receipt["reason"]


def test_a_store_that_loses_a_file_never_gets_the_pointer(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = empty_store()
    put = type(memory).put_file
    monkeypatch.setattr(
        type(memory),
        "put_file",
        lambda self, local, remote: None if remote.endswith("best.pt") else put(self, local, remote),
    )
    with pytest.raises(SlipwayError, match=r"best.pt \(missing\)"):
        run()
    assert not memory.exists("/models/segmentation/latest.json")


# The hub


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    import huggingface_hub.constants

    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_thisisasecrettoken")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        target("hf://tester/digits")
        yield server


def test_the_hub_gets_one_commit_and_a_tag(server: HubServer) -> None:
    receipt = run()
    repository = server.repositories["tester/digits"]
    assert len(repository.commits) == 2 and list(repository.tags) == ["v1"]
    oid, files = repository.commits[-1]
    assert repository.tags["v1"] == oid and receipt["location"] == "hf://tester/digits@v1"
    assert set(files) == {file["path"] for file in receipt["files"]} | {".gitattributes"}
    assert files["weights.safetensors"] == b"weights"
    assert server.tokens - {""} == {"Bearer hf_thisisasecrettoken"} and "secrettoken" not in RECEIPT.read_text(
        encoding="utf-8"
    )


def test_the_same_model_makes_no_second_commit_and_a_better_one_leaves_no_old_files(server: HubServer) -> None:
    run()
    repository = server.repositories["tester/digits"]
    assert run()["published"] is False and len(repository.commits) == 2
    stages(value=0.8, weights=b"new")
    Path("data/train/segmentation/model/best.pt").unlink()
    assert run()["version"] == "v2"
    assert (
        len(repository.commits) == 3 and "best.pt" not in repository.commits[-1][1] and list(repository.tags) == ["v1", "v2"]
    )


@pytest.mark.parametrize("place", ["POST .*/commit/", "POST /api/repos/create", "GET .*/refs", "POST .*/tag/"])
def test_a_busy_hub_is_asked_again(server: HubServer, place: str) -> None:
    server.faults = {place: [503, 429]}
    assert run()["published"] is True
    assert len(server.repositories["tester/digits"].commits) == 2 and not server.faults[place]


def test_somebody_elses_commit_in_between_is_seen_and_judged_again(server: HubServer) -> None:
    def theirs(value: float) -> None:
        repository = server.repositories["tester/digits"]
        lineage = json.dumps({"model": "theirs", "metric": METRIC, "value": value}).encode()
        repository.tags[f"v{len(repository.tags) + 1}"] = repository.commit(
            {**repository.commits[-1][1], "lineage.json": lineage}
        )

    server.before_commit = lambda: theirs(0.6)
    assert run()["version"] == "v2"
    server.before_commit = lambda: theirs(0.9)
    stages(value=0.8, weights=b"new")
    receipt = run()
    assert receipt["published"] is False and "does not beat the 0.9000 of v3" in receipt["reason"]


def test_a_file_that_the_hub_lost_is_noticed_and_the_commit_never_becomes_a_version(server: HubServer) -> None:
    server.lost = "best.pt"
    with pytest.raises(SlipwayError, match=r"best.pt \(missing\)"):
        run()
    assert server.repositories["tester/digits"].tags == {} and not RECEIPT.exists()
    server.lost = ""
    assert run()["version"] == "v1"


@pytest.mark.parametrize(("status", "words"), [(401, "set HF_TOKEN"), (403, "role write"), (400, "hf://tester/digits")])
def test_a_refusal_of_the_hub_says_what_to_do_and_shows_no_token(server: HubServer, status: int, words: str) -> None:
    server.faults = {"POST .*/commit/|POST /api/repos/create": [status] * 9}
    with pytest.raises(SlipwayError, match=words) as caught:
        run()
    assert "secrettoken" not in str(caught.value)


def test_a_dry_run_asks_the_hub_and_changes_nothing_there(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    publish.rehearse("segmentation")
    assert "will be made (private); logged in as tester" in capsys.readouterr().out
    assert server.repositories == {} and all(request.startswith(("GET", "HEAD")) for request in server.requests)
    server.role = "read"
    with pytest.raises(SlipwayError, match="may only read"):
        publish.rehearse("segmentation")


def test_a_data_set_of_the_hub_is_downloaded_at_a_named_commit(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from contracts.settings import Source

    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)
    run()
    whole = fetching.fetch(Source(address="hf://tester/digits", revision="v1"), Path("store"))
    assert (
        whole.revision == server.repositories["tester/digits"].tags["v1"] and (whole.path / "graphs/segment.onnx").is_file()
    )
    one = fetching.fetch(Source(address="hf://tester/digits@v1/metrics.json"), Path("store"))
    assert (
        one.name == "metrics.json" and one.path.read_bytes() == Path("data/evaluate/segmentation/metrics.json").read_bytes()
    )
    with pytest.raises(SlipwayError, match="hf://tester/nothing cannot be downloaded"):
        fetching.fetch(Source(address="hf://tester/nothing"), Path("store"))
