"""What an artifact's folder tells of its model besides the graphs: name, version, what it reached, licence, input size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contracts.errors import SlipwayError
from contracts.files import read_json
from serving.runtime import Artifact

# More than this many numbers along an axis are no colours.
MOST_COLOURS = 4


def about(artifact: Artifact) -> dict[str, Any]:
    """Plain values; None for what the folder does not hold: only a published one has a card, with name and licence.

    "metric" is that of the model as it ships, on the test split; "torch_metrics" are those of the model it was made from.

    Raises:
        SlipwayError: when a file of the folder is broken.
    """
    card = front_matter(artifact.folder / "README.md")
    return {
        "workload": artifact.workload,
        "name": card["model-index"][0]["name"] if card.get("model-index") else artifact.workload,
        "version": artifact.folder.resolve().name if card else None,
        "precision": artifact.recipe,
        "metric": shipped_metric(artifact),
        "torch_metrics": _read(artifact.folder / "metrics.json"),
        "licence": card.get("license"),
        "input_size": input_size(artifact),
    }


def front_matter(card: Path) -> dict[str, Any]:
    """What stands between the first two lines `---` of a model card; nothing where there is no card."""
    import yaml

    if not card.is_file():
        return {}
    start, _, rest = card.read_text(encoding="utf-8").partition("---\n")
    try:
        found = yaml.safe_load(rest.partition("\n---\n")[0]) if not start else {}
    except yaml.YAMLError as error:
        raise SlipwayError(f"{card} does not begin with valid YAML ({error}): publish or download the model again") from None
    return found if isinstance(found, dict) else {}


def shipped_metric(artifact: Artifact) -> dict[str, Any] | None:
    """Name, value and split of the metric that the model was chosen by, as it ships."""
    comparison = _read(artifact.folder / "comparison.json")
    for row in comparison["rows"] if comparison else ():
        if row["name"] == artifact.recipe:
            return {"name": comparison["metric"], "value": row["metric"], "split": comparison["split"]}
    return None


def input_size(artifact: Artifact) -> list[int] | None:
    """The sides in pixels of the square or rectangle that a picture is brought to before the first graph."""
    first = next(iter(artifact.graphs.values()))
    shape = next(iter(first["inputs"].values()))["shape"]
    sides = [size for size in shape if isinstance(size, int) and size > MOST_COLOURS]
    return sides if len(sides) == 2 else None


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        raise SlipwayError(f"{path} is not valid JSON ({error}): publish or download the model again") from None
