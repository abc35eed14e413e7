"""What a run says of itself becomes the tables that are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.tracking import Journal, write_curves, write_validation


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Three logged steps, validated after the second and the third; the last line was cut off."""
    lines = Journal(tmp_path / "metrics.jsonl", resumed_at=0)
    lines.write(step=1, epoch=0.5, loss=3.0)
    lines.write(step=2, epoch=1.0, loss=2.0)
    lines.write(step=2, epoch=1.0, accuracy=0.25, num_images=8)
    lines.write(step=3, epoch=1.5, loss=1.0)
    lines.write(step=3, epoch=1.5, accuracy=float("nan"), num_images=8)
    with lines.path.open("a") as file:
        file.write('{"step": 4, "lo')
    return lines.path


def test_the_curves_have_a_row_a_step_and_every_value_of_it(journal: Path, tmp_path: Path) -> None:
    write_curves(journal, tmp_path / "curves.csv")
    rows = (tmp_path / "curves.csv").read_text().split()
    assert rows == ["step,epoch,loss,accuracy,num_images", "1,0.5,3.0,,", "2,1.0,2.0,0.25,8", "3,1.5,1.0,,8"]


def test_the_table_of_validations_ends_with_the_metric_for_dvc_draws_the_last_column(journal: Path, tmp_path: Path) -> None:
    write_validation(journal, tmp_path / "validation.csv", metric="accuracy")
    assert (tmp_path / "validation.csv").read_text().split() == ["step,epoch,accuracy", "2,1.0,0.25", "3,1.5,"]


def test_a_run_that_was_never_validated_has_a_table_without_rows(journal: Path, tmp_path: Path) -> None:
    write_validation(journal, tmp_path / "validation.csv", metric="recall")
    assert (tmp_path / "validation.csv").read_text().split() == ["step,epoch,recall"]
