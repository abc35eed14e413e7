"""The command line: every verb is there, and what is wrong is said in one line."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import VERBS, app

RUNNER = CliRunner()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_file_and_help_of_its_own(verb: str) -> None:
    assert callable(getattr(importlib.import_module(f"cli.{verb}"), verb))
    result = RUNNER.invoke(app, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_help_lists_the_verbs() -> None:
    result = RUNNER.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(verb in result.output for verb in VERBS)


def test_an_unknown_verb_is_refused() -> None:
    result = RUNNER.invoke(app, ["fly"])
    assert result.exit_code == 2
    assert "fly" in result.output


def test_an_error_of_ours_is_printed_alone_and_ends_with_status_1(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from cli.main import app; app()", "run", "segmentation"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        program, cwd=tmp_path, env={"PYTHONPATH": root, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {tmp_path} holds no dvc.yaml: run from the project's folder"
