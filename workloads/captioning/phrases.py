"""What captions of the embedded scenes say, and how a caption is understood: the words, the phrasings, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
# Pairs that no caption of train names: one colour a digit, every colour once or twice, so that none of either is rare.
HELD_OUT = frozenset((digit, COLOURS[(index + 1) % len(COLOURS)]) for index, digit in enumerate(DIGITS))
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_NOUN = re.compile(rf"\b(small )?({'|'.join(COLOURS)}) ({'|'.join(DIGITS)})\b")
_RELATION = re.compile(r"\b(left of|right of|above|below)\b")


@dataclass(frozen=True)
class Thing:
    """A digit of a colour; only that one is small is ever said."""

    digit: str
    colour: str
    small: bool

    @property
    def noun(self) -> str:
        return f"{'small ' if self.small else ''}{self.colour} {self.digit}"


def describe(things: Sequence[Thing], relation: str | None) -> str:
    """The scene in its shortest form: "red seven left of small blue two"."""
    return f" {relation} ".join(thing.noun for thing in things) if relation else things[0].noun


def phrasings(things: Sequence[Thing], relation: str | None) -> list[str]:
    """Every caption of a scene."""
    nouns = [f"a {thing.noun}" for thing in things]
    if relation is None:
        return [nouns[0], f"there is {nouns[0]}", f"{nouns[0]} on a dark ground"]
    return [
        f"{nouns[0]} {relation} {nouns[1]}",
        f"there is {nouns[0]} {relation} {nouns[1]}",
        f"{nouns[1]} {OPPOSITE[relation]} {nouns[0]}",
    ]


def understand(caption: str) -> tuple[list[Thing], str | None]:
    """The things that a caption names, in its order, and the relation of the first to the second where it names one."""
    things = [Thing(digit, colour, bool(small)) for small, colour, digit in _NOUN.findall(caption)]
    relation = _RELATION.search(caption)
    return things, relation[1] if relation else None
