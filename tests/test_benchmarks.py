"""A measurement says what made it: the command as it was given, the code, the day and the machine."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pytest

from benchmarks import conditions
from contracts.files import read_json


def test_a_result_names_its_command_with_its_options_and_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ranks.py", "--turns", "5", "--folder", str(tmp_path / "kept")])
    conditions.write_result("ranks", bar="none", met=True, load=0.123, rows=[1])
    found = read_json(tmp_path / "ranks.json")
    assert found["command"] == "python -m benchmarks.ranks --turns 5 --folder kept"
    assert found["date"] == date.today().isoformat()
    assert found["git"] is None or len(found["git"]["revision"]) == 40
    assert (found["bar"], found["met"], found["load_before"], found["rows"]) == ("none", True, 0.12, [1])
    assert found["cpu"] and found["cores"] and str(tmp_path) not in (tmp_path / "ranks.json").read_text()
