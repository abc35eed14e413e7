"""What a model's folder tells: nothing is made up where files are missing, and a broken one is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SlipwayError
from serving.about import about
from serving.runtime import Artifact
from tests.serving.stand_in import write_artifact


def test_a_folder_that_is_not_published_has_no_version_no_metric_and_no_licence(tmp_path: Path) -> None:
    told = about(Artifact.read(write_artifact(tmp_path / "export", size=96)))
    assert told == {
        "workload": "segmentation",
        "name": "segmentation",
        "version": None,
        "precision": "fp32",
        "metric": None,
        "torch_metrics": None,
        "licence": None,
        "input_size": [96, 96],
    }


def test_a_card_without_front_matter_tells_nothing(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "model")
    (folder / "README.md").write_text("# A model\n---\nlicense: none\n---\n")
    assert about(Artifact.read(folder))["licence"] is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("README.md", "---\nlicense: [\n---\n", r"README\.md does not begin with valid YAML"),
        ("comparison.json", "{", r"comparison\.json is not valid JSON"),
        ("metrics.json", "", r"metrics\.json is not valid JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    folder = write_artifact(tmp_path / "model")
    (folder / name).write_text(text)
    with pytest.raises(SlipwayError, match=said):
        about(Artifact.read(folder))
