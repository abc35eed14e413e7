"""The model card: front matter for the Hugging Face Hub, and a page whose every number comes from a file that a stage wrote."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contracts import workload as workloads
from contracts.files import read_json
from contracts.workload import Card, HasCard
from tasks.publishing.release import Release, shipped_row

TEMPLATE = "model_card.md.j2"


def write_card(
    release: Release, *, name: str, artifact: Mapping[str, Any], lineage: Mapping[str, Any], license: str | None
) -> None:
    """Write README.md into the release's folder. `license` None leaves it to what the workload knows."""
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    comparison, metrics = read_json(release.path / "comparison.json"), read_json(release.path / "metrics.json")
    told = card_of(release.workload, artifact)
    told = dataclasses.replace(told, license=license or told.license)
    header = front_matter(release, name=name, told=told, comparison=comparison, metrics=metrics, lineage=lineage)
    page = environment.get_template(TEMPLATE).render(
        front_matter=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        name=name,
        told=told,
        release=release,
        artifact=artifact,
        lineage=lineage,
        data=data_name(lineage),
        comparison=comparison,
        files=[path.relative_to(release.path).as_posix() for path in sorted(release.path.rglob("*")) if path.is_file()],
        report=section((release.path / "report.md").read_text(encoding="utf-8")),
    )
    (release.path / "README.md").write_text(page.strip() + "\n", encoding="utf-8")


def card_of(workload: str, artifact: Mapping[str, Any]) -> Card:
    """What the workload says of a model with this artifact."""
    kind = workloads.load(workload)
    if not isinstance(kind, HasCard):
        return Card()
    return kind.card(kind.Settings.model_validate(artifact["settings"]), artifact["facts"])


def front_matter(
    release: Release,
    *,
    name: str,
    told: Card,
    comparison: Mapping[str, Any],
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
) -> dict[str, Any]:
    """What the hub reads: license, library, task, what it was made of, tags, and the measured results as a model-index: those of what
    ships, and torch's where nothing else has them."""
    kind = release.workload.replace("_", "-")
    shipped = {release.metric: release.value, **shipped_row(comparison).get("metrics", {})}
    results = [
        {"type": key, "value": value, "name": f"{key} ({by})"}
        for key, value, by in (
            *((key, value, f"{comparison['chosen']}, as shipped") for key, value in shipped.items()),
            *((key, value, "torch") for key, value in metrics.items() if key not in shipped),
        )
        if isinstance(value, float) and not key.startswith("num_")  # counts are no scores
    ]
    data = {"name": data_name(lineage), "type": "custom", "split": "test"}
    measured = {"task": {"type": told.task or kind}, "dataset": data, "metrics": results}
    header = {
        "license": told.license,
        "library_name": told.library,
        "pipeline_tag": told.task,
        "base_model": list(told.base_models),
        "datasets": hub_datasets(lineage),
        "tags": ["slipway", kind, "onnx", comparison["chosen"]],
        "model-index": [{"name": name, "results": [measured]}],
    }
    return {key: value for key, value in header.items() if value}


def hub_datasets(lineage: Mapping[str, Any]) -> list[str]:
    """The ids of the sources that are data sets of the hub."""
    addresses = [source["address"] for source in lineage["data"].get("sources", [])]
    found = [re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", address) for address in addresses]
    return list(dict.fromkeys(one.group(1) for one in found if one))


def data_name(lineage: Mapping[str, Any]) -> str:
    """The data set in a few words: the last parts of its addresses."""
    sources = [
        source["address"].rstrip("/").rsplit("/", 1)[-1].split("?")[0] for source in lineage["data"].get("sources", [])
    ]
    return ", ".join(sources) if sources else "embedded sample data"


def section(markdown: str) -> str:
    """The report as a section of the card: its own title replaced, every heading one level lower, code left alone."""
    parts = re.split(r"(^```.*?^```)", re.sub(r"\A# .*", "# Report", markdown.strip()), flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else re.sub(r"^(#{1,5}) ", r"#\1 ", part, flags=re.MULTILINE) for part in parts
    )
