"""Which files are the pictures that a user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SlipwayError
from contracts.pictures import listed

SUFFIXES = {".jpg", ".png", ".webp"}


def test_the_pictures_of_a_folder_are_listed_sorted_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/z.png", "a.JPG", ".hidden/c.png", "notes.txt", "b/a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in listed(tmp_path, SUFFIXES)] == ["a.JPG", "b/a.webp", "b/z.png"]
    assert listed(tmp_path / "notes.txt", SUFFIXES) == [tmp_path / "notes.txt"]


def test_a_source_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SlipwayError, match="holds no pictures"):
        listed(tmp_path, SUFFIXES)
    with pytest.raises(SlipwayError, match="does not exist"):
        listed(tmp_path / "gone", SUFFIXES)
