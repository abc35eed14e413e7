"""`make environment` builds nothing twice and says what is missing. Building it whole is what a fresh clone does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli import environment

ROOT = Path(__file__).parents[2]


def test_an_environment_made_from_the_same_files_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = tmp_path / "stamp"
    stamp.write_text(environment.fingerprint())
    monkeypatch.setattr(environment, "STAMP", stamp)
    monkeypatch.setattr(environment, "works", lambda: True)
    monkeypatch.setattr(environment, "run", lambda command: pytest.fail(f"it ran {command}"))
    environment.main()


def test_a_changed_lock_file_is_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.fingerprint()
    changed = tmp_path / "requirements.lock"
    changed.write_text(environment.LOCK.read_text() + "\n")
    monkeypatch.setattr(environment, "LOCK", changed)
    assert environment.fingerprint() != before


def test_uv_itself_is_installed_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "VENV", tmp_path)
    text = environment.only_uv().read_text()
    assert text.startswith("uv==") and "--hash=sha256:" in text
    assert len(re.findall(r"^\S+==", text, re.MULTILINE)) == 1


def test_the_lock_names_no_index_and_holds_a_hash_for_everything() -> None:
    lock = environment.LOCK.read_text()
    packages = re.split(r"^(?=\w)", lock, flags=re.MULTILINE)[1:]
    assert len(packages) > 100
    assert all("--hash=sha256:" in package for package in packages)
    assert not re.search(r"^--|https?://|file:", lock, re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has run.ps1 in place of make")
def test_make_says_which_pythons_would_do_where_none_is_found() -> None:
    done = subprocess.run(["make", "PYTHON=", "environment"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no Python 3.11, 3.12 or 3.13" in done.stderr


def test_the_verbs_of_make_and_of_windows_are_the_same() -> None:
    makefile, powershell = ((ROOT / name).read_text() for name in ("Makefile", "run.ps1"))
    verbs = set(re.findall(r"^(\w+):", makefile, re.MULTILINE)) - {"help"}
    offered = re.search(r"ValidateSet\((.*?)\)", powershell)
    assert offered is not None
    assert set(re.findall(r'"(\w+)"', offered[1])) == verbs == {"demo", "test", "check", "environment", "lock"}
