"""Which files are the raw inputs that a user names, and what is said of those that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SlipwayError
from contracts.pictures import PICTURES
from contracts.raw import RawInput, RawKind


def test_the_pictures_of_a_folder_are_listed_sorted_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/z.png", "a.JPG", ".hidden/c.png", "notes.txt", "b/a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = PICTURES.listed(tmp_path)
    assert [raw.name for raw in found] == ["a.JPG", "b/a.webp", "b/z.png"]
    assert [raw.content for raw in found] == [tmp_path / raw.name for raw in found]
    assert PICTURES.listed(tmp_path / "notes.txt") == [RawInput("notes.txt", tmp_path / "notes.txt")]


def test_a_source_without_any_is_an_error_that_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(SlipwayError, match="holds no pictures"):
        PICTURES.listed(tmp_path)
    with pytest.raises(SlipwayError, match="does not exist"):
        PICTURES.listed(tmp_path / "gone")
    with pytest.raises(SlipwayError, match=r"holds no histories \(\.npz\)"):
        RawKind("histories", frozenset({".npz"})).listed(tmp_path)


def test_what_lies_in_memory_reads_as_what_lies_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(b"content")
    assert RawInput("one.png", path).read() == RawInput("one.png", b"content").read() == b"content"
    assert (RawInput("one.png", path).place, RawInput("one.png", b"").place) == (str(path), "one.png")
    path.unlink()
    with pytest.raises(SlipwayError, match=r"one\.png cannot be read: No such file"):
        RawInput("one.png", path).read()
