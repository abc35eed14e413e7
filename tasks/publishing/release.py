"""The folder that is published: graphs, weights, description, measured numbers, model card and lineage, built from the stages' files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts import workload as workloads
from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from contracts.settings import PublishSettings, Settings
from tasks.downloading.addresses import local_path, scheme_of, shown
from tasks.lineage import git_state, locked_stages
from tasks.stage import folder

PACKAGES = ("torch", "torchvision", "ultralytics", "onnx", "onnxruntime", "numpy")
# Local to the run that made the model: a checkpoint to resume from, or folders of the machine it ran on.
LEFT_BEHIND = ("last.pt", "spec.json", "checkpoint", "weights.safetensors")
# Settings that may be a file or a folder of this machine.
PLACES = ("model", "accelerate_config")


@dataclass(frozen=True)
class Release:
    """A built folder. `model` is a hash of what computes (graphs, weights, classes, preprocessing): the same model, the same hash."""

    path: Path
    workload: str
    model: str
    metric: str
    value: float

    @property
    def record(self) -> dict[str, Any]:
        """What a registry must remember of a version, to compare the next one with it."""
        return {"model": self.model, "metric": self.metric, "value": self.value}

    def files(self) -> list[dict[str, Any]]:
        """Path, sha256 and bytes of every file, in order."""
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        return [
            {"path": path.relative_to(self.path).as_posix(), "sha256": sha256(path), "bytes": path.stat().st_size}
            for path in paths
        ]


def check_gates(workload: str) -> dict[str, Any]:
    """The comparison of what ships with torch, if every gate was passed.

    Raises:
        SlipwayError: when a gate failed or its file is missing, saying which and why.
    """
    parity = _required("export", workload, "parity.json")
    if parity.get("passed") is not True:
        raise SlipwayError(
            f"{workload} is not published: {folder('export', workload) / 'parity.json'} says that the export differs from torch"
        )
    place = folder("quantize", workload) / "comparison.json"
    comparison = _required("quantize", workload, "comparison.json")
    if comparison.get("passed") is not True:
        reason = comparison.get("reason") or "what would ship is worse than torch beyond the budget"
        raise SlipwayError(f"{workload} is not published: {place} says that {reason}. {_ways_out(workload)}")
    artifact = _required("quantize", workload, "artifact.json")
    if artifact.get("recipe") != comparison["chosen"]:
        raise SlipwayError(
            f"{workload} is not published: {place} chose {comparison['chosen']}, the artifact is {artifact.get('recipe')}"
        )
    metric = workloads.load(workload).metric
    if comparison["metric"] != metric.name:
        raise SlipwayError(
            f"{workload} is not published: {place} compares {comparison['metric']}, the workload is judged by {metric.name}"
        )
    chosen, value = comparison["chosen"], shipped_row(comparison, place).get("metric")
    if not isinstance(value, int | float):
        raise SlipwayError(f"{workload} is not published: {place} has {value!r} as the {metric.name} of {chosen}")
    if fault := metric.fault(value):
        raise SlipwayError(f"{workload} is not published: {place}: {chosen} on test: {fault}. {_ways_out(workload)}")
    measured = {**_required("evaluate", workload, "metrics.json"), **shipped_metrics(comparison, place)}
    limits = within_reach(workload, workloads.settings_of(workload).publish)
    if beyond := list(beyond_limits(measured, limits)):
        raise SlipwayError(f"{workload} is not published: on test {'; '.join(beyond)}. {_ways_out(workload)}")
    return comparison


def within_reach(workload: str, settings: PublishSettings) -> PublishSettings:
    """The limits without those of metrics that these data cannot have, each of which is said."""
    scores = folder("evaluate", workload) / "details" / "scores.json"
    elsewhere = read_json(scores).get("elsewhere", {}) if scores.is_file() else {}
    for name in sorted(elsewhere.keys() & {*settings.least, *settings.most}):
        print(f"{workload}: the limit of {name} (publish) limits nothing here: {elsewhere[name]}")
    kept = {
        where: {name: limit for name, limit in getattr(settings, where).items() if name not in elsewhere}
        for where in ("least", "most")
    }
    return settings.model_copy(update=kept)


def shipped_metrics(comparison: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """All metrics of what ships, on the test split; of a comparison that has one alone that one, which is said."""
    row = shipped_row(comparison, place)
    if "metrics" not in row:
        print(
            f"{place} has one metric of {row['name']}, which ships: its others are taken to be torch's. python -m tasks.quantize"
            " measures them all"
        )
    return {**row.get("metrics", {}), comparison["metric"]: row["metric"]}


def beyond_limits(metrics: Mapping[str, Any], settings: PublishSettings) -> Iterator[str]:
    """In words, each limit that is not kept; one on a metric that was not measured is not kept."""
    for where, limits, sign in (("least", settings.least, 1), ("most", settings.most, -1)):
        for name, limit in limits.items():
            if name not in metrics:
                yield f"publish.{where} names {name}, which is none of {', '.join(metrics)}"
            elif not sign * metrics[name] >= sign * limit:
                yield f"{name} is {metrics[name]:.4g}, publish.{where} asks for at {where} {limit:g}"


def _ways_out(workload: str) -> str:
    page = folder("report", workload) / "report.html"
    return f"{page} shows what it learnt: train longer ({workload}.train.epochs), on more data, or from pretrained weights"


def shipped_row(comparison: Mapping[str, Any], place: Path | str = "comparison.json") -> dict[str, Any]:
    """The row of what ships."""
    for row in comparison["rows"]:
        if row["name"] == comparison["chosen"]:
            return row
    raise SlipwayError(f"{place} has no row for {comparison['chosen']!r}, which it chose")


def build(workload: str, path: Path, *, name: str) -> Release:
    """Write everything that is published into the empty folder `path`.

    Raises:
        SlipwayError: when a gate failed, or a file that a stage should have left is missing.
    """
    comparison = check_gates(workload)
    artifact = _required("quantize", workload, "artifact.json")
    settings = workloads.settings_of(workload)
    artifact |= {"settings": published_settings(artifact["settings"]), "facts": without_folders(artifact["facts"])}
    for file in graph_files(artifact):
        _copy(folder("quantize", workload) / file, path / file, workload)
    write_json(path / "artifact.json", artifact)
    _copy_weights(workload, path)
    if (layout := folder("export", workload) / "layout").is_dir():
        shutil.copytree(layout, path, dirs_exist_ok=True)
    write_json(path / "metrics.json", _required("evaluate", workload, "metrics.json"))
    write_json(path / "comparison.json", comparison)
    write_json(path / "parity.json", _required("export", workload, "parity.json"))
    release = Release(
        path, workload, fingerprint(path, artifact), comparison["metric"], float(shipped_row(comparison)["metric"])
    )
    lineage = {**release.record, "workload": workload, **lineage_of(workload, settings)}
    write_json(path / "lineage.json", lineage)
    _copy_report(workload, path)
    from tasks.publishing.card import write_card

    write_card(release, name=name, artifact=artifact, lineage=lineage, license=settings.publish.license)
    return release


def fingerprint(path: Path, artifact: Mapping[str, Any]) -> str:
    """A hash of the graphs, the weights and what serving is told about them. Settings and times are not in it."""
    told = {key: artifact.get(key) for key in ("workload", "recipe", "graphs", "facts", "preprocessing")}
    hashed = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for file in [*graph_files(artifact), "weights.safetensors"]:
        hashed.update(f"{file} {sha256(path / file)}\n".encode())
    return hashed.hexdigest()


def graph_files(artifact: Mapping[str, Any]) -> list[str]:
    """The files of an artifact's graphs; large ones have two."""
    return [graph[key] for graph in artifact["graphs"].values() for key in ("file", "data") if key in graph]


def published_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what is nobody's business: secrets in addresses, folders of this machine."""
    settings = without_folders(settings)

    def public(address: str) -> str:
        return local_path(address).name if scheme_of(address) == "file" else shown(address)

    download, evaluate, publish = (dict(settings.get(stage) or {}) for stage in ("download", "evaluate", "publish"))
    if "sources" in download:
        download["sources"] = [{**source, "address": public(source["address"])} for source in download["sources"]]
    if "target" in publish:
        publish["target"] = public(publish["target"])
    if "beside" in evaluate:
        evaluate["beside"] = {name: Path(place).name for name, place in evaluate["beside"].items()}
    return {**settings, "download": download, "evaluate": evaluate, "publish": publish}


def without_folders(value: Any) -> Any:
    """The same nested settings or facts, but of files and folders outside the project only the last part of their path: of base
    models (a `name` beside a `revision`) and of what stands under one of `PLACES`."""
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    places = (*PLACES, "name") if "revision" in value else PLACES
    return {
        key: Path(item).name if key in places and isinstance(item, str) and is_outside(item) else without_folders(item)
        for key, item in value.items()
    }


def is_outside(place: str) -> bool:
    """Whether it is a path that does not begin in the project's folder; an id on the hub is none."""
    return Path(place).is_absolute() or place.startswith(("~", ".."))


def lineage_of(workload: str, settings: Settings) -> dict[str, Any]:
    """Where a model comes from: code, data, settings, machine, packages."""
    downloaded = folder("download", workload) / "download.json"
    data = read_json(downloaded) if downloaded.exists() else {}
    for source in data.get("sources", []):
        source["address"] = published_settings({"download": {"sources": [source]}})["download"]["sources"][0]["address"]
    return {
        "git": git_state(),
        "dvc": locked_stages(workload),
        "data": data,
        "params": published_settings(settings.model_dump(mode="json")),
        "plan": _required("train", workload, "model/spec.json")["plan"],
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_weights(workload: str, path: Path) -> None:
    """weights.safetensors, and what the workload saved for its ecosystem's own tools (best.pt, an adapter)."""
    model = folder("train", workload) / "model"
    _copy(model / "weights.safetensors", path / "weights.safetensors", workload)
    for item in sorted(model.iterdir()):
        if item.name not in LEFT_BEHIND and not item.name.startswith("."):
            (shutil.copytree if item.is_dir() else shutil.copyfile)(item, path / item.name)


def _copy_report(workload: str, path: Path) -> None:
    """report.md and the files beside it that it links to."""
    home = folder("report", workload)
    _copy(home / "report.md", path / "report.md", workload)
    for link in re.findall(r"\]\(([^)\s#:]+)\)", (home / "report.md").read_text(encoding="utf-8")):
        linked = home / link
        if linked.is_file() and linked.resolve().is_relative_to(home.resolve()) and not (path / link).exists():
            _copy(linked, path / link, workload)


def _copy(source: Path, target: Path, workload: str) -> None:
    if not source.is_file():
        raise SlipwayError(f"{source} is missing, so {workload} is not published: dvc repro runs the stage that writes it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _required(stage: str, workload: str, name: str) -> Any:
    path = folder(stage, workload) / name
    if not path.is_file():
        raise SlipwayError(f"{workload} is not published: {path} is missing: run python -m tasks.{stage} {workload} first")
    try:
        return read_json(path)
    except ValueError as error:
        raise SlipwayError(f"{path} is not valid JSON: {error}: run python -m tasks.{stage} {workload} again") from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
