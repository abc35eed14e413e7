"""The words of captions, and the terms among them that name what protects people from discrimination (terms.yaml)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

LISTS = Path(__file__).with_suffix(".yaml")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_PIECE = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text as every score counts them: lower case, no punctuation, hyphens part words, apostrophes do not."""
    return _WORD.findall(_lower(text))


def _lower(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")


def groups() -> tuple[str, ...]:
    """The groups of terms, in the order of the file."""
    return tuple(group for group in _lists() if not group.startswith("not_"))


def found(caption: str) -> dict[str, list[str]]:
    """The terms that a caption names, by group, in its order; a group without any is left out.

    Whole words, in any case; where two terms of a group begin at one word the longer counts, and nothing inside it.
    """
    pieces = _PIECE.findall(_lower(caption))
    free_from = dict.fromkeys(groups(), 0)
    named: dict[str, list[str]] = {}
    for place, piece in enumerate(pieces):
        for phrase, name in _by_first_word().get(piece, ()):
            if tuple(pieces[place : place + len(phrase)]) != phrase:
                continue
            for group in groups() if name == "not_terms" else (name.removeprefix("not_"),):
                if free_from[group] <= place:
                    free_from[group] = place + len(phrase)
                    if group == name:
                        named.setdefault(group, []).append(" ".join(phrase))
    return named


def rates(captions: Sequence[str]) -> dict[str, float]:
    """The share of captions that name a term, for each group; 0 where there are no captions."""
    counts = Counter(group for caption in captions for group in found(caption))
    return {group: counts[group] / max(len(captions), 1) for group in groups()}


@cache
def _lists() -> dict[str, list[str]]:
    return yaml.safe_load(LISTS.read_text(encoding="utf-8"))


@cache
def _by_first_word() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """Every phrase with the name of its list, by its first word, the longest first."""
    phrases = [(tuple(term.split()), name) for name, terms in _lists().items() for term in terms]
    index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for phrase, name in sorted(phrases, key=lambda one: -len(one[0])):
        index.setdefault(phrase[0], []).append((phrase, name))
    return index
