"""The model card: front matter for the Hugging Face Hub, and a page whose every number comes from a file that a stage wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.files import read_json

if TYPE_CHECKING:
    from tasks.publishing.release import Release

TEMPLATE = "model_card.md.j2"


def write_card(release: Release, *, name: str, artifact: Mapping[str, Any], lineage: Mapping[str, Any]) -> None:
    """Write README.md into the release's folder."""
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    comparison, metrics = read_json(release.path / "comparison.json"), read_json(release.path / "metrics.json")
    header = front_matter(release, name=name, comparison=comparison, metrics=metrics, data=data_name(lineage))
    page = environment.get_template(TEMPLATE).render(
        front_matter=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        name=name,
        release=release,
        artifact=artifact,
        lineage=lineage,
        data=data_name(lineage),
        comparison=comparison,
        files=[path.relative_to(release.path).as_posix() for path in sorted(release.path.rglob("*")) if path.is_file()],
        report=section((release.path / "report.md").read_text(encoding="utf-8")),
    )
    (release.path / "README.md").write_text(page.strip() + "\n", encoding="utf-8")


def front_matter(
    release: Release, *, name: str, comparison: Mapping[str, Any], metrics: Mapping[str, Any], data: str
) -> dict[str, Any]:
    """What the hub reads: license, library, tags and the measured results as a model-index."""
    kind = release.workload.replace("_", "-")
    results = [
        {"type": release.metric, "value": release.value, "name": f"{release.metric} ({comparison['chosen']}, as shipped)"}
    ]
    for key, value in metrics.items():
        if isinstance(value, float) and not key.startswith("num_"):  # counts are no scores
            results.append({"type": key, "value": value, "name": f"{key} (torch)"})
    measured = {"task": {"type": kind}, "dataset": {"name": data, "type": "custom", "split": "test"}, "metrics": results}
    return {
        "license": "agpl-3.0",
        "library_name": "onnx",
        "tags": ["slipway", kind, "onnx", comparison["chosen"]],
        "model-index": [{"name": name, "results": [measured]}],
    }


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
