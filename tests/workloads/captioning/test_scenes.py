"""The embedded scenes: captions say what is drawn, held-out pairs stay out of training, and no hand is in two splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from workloads.captioning.phrases import COLOURS, DIGITS, HELD_OUT, OPPOSITE, Thing, describe, phrasings, understand
from workloads.captioning.scenes import SIZE, Hand, compose, draw, relation_of, write_scenes


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    raw = tmp_path_factory.mktemp("raw")
    write_scenes(raw, 120)
    found = [json.loads(line) for line in (raw / "metadata.jsonl").read_text().splitlines()]
    assert all((raw / row["file_name"]).is_file() for row in found)
    return found


def test_every_phrasing_is_understood_as_the_scene_it_was_made_from() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = compose(rng, new_pairs=None)
        things, relation = [one.thing for one in scene], relation_of(scene)
        for caption in phrasings(things, relation):
            named, said = understand(caption)
            if said != relation:
                assert said
                named, said = named[::-1], OPPOSITE[said]
            assert (named, said) == (things, relation)


def test_the_relation_is_that_of_the_picture() -> None:
    """The ink itself is weighed, not the cells that it was put in."""
    rng, hand = np.random.default_rng(1), Hand.of("train")
    checked = set()
    for _ in range(300):
        scene = compose(rng, new_pairs=None)
        relation = relation_of(scene)
        if relation is None:
            continue
        centres = []
        for one in scene:
            picture = draw((one,), hand, rng).max(-1) > 110
            centres.append(np.argwhere(picture).mean(0))
        (row, column), (other_row, other_column) = centres
        expected = {"left of": column < other_column, "right of": column > other_column, "above": row < other_row}
        assert expected[relation], (scene, relation)
        checked.add(relation)
    assert checked == {"left of", "right of", "above"}


def test_no_caption_of_train_and_val_names_a_held_out_pair_and_half_of_test_do(rows: list[dict]) -> None:
    pairs = {
        split: [
            any((thing.digit, thing.colour) in HELD_OUT for thing in understand(row["scene"])[0])
            for row in rows
            if row["split"] == split
        ]
        for split in ("train", "val", "test")
    }
    assert not any(pairs["train"]) and not any(pairs["val"])
    assert 0.4 <= np.mean(pairs["test"]) <= 0.6


def test_every_digit_and_every_colour_is_left_out_once_or_twice_only() -> None:
    assert sorted(digit for digit, _ in HELD_OUT) == sorted(DIGITS)
    counts = [sum(colour == one for _, one in HELD_OUT) for colour in COLOURS]
    assert set(counts) <= {1, 2}


def test_no_handwriting_is_in_two_splits() -> None:
    hands = {split: {image.tobytes() for image in Hand.of(split).images} for split in ("train", "val", "test")}
    assert not hands["train"] & hands["test"] and not hands["train"] & hands["val"] and not hands["val"] & hands["test"]


def test_the_same_scenes_are_written_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_scenes(tmp_path / name, 30)
    one, two = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_a_scene_in_words() -> None:
    things = [Thing("seven", "red", small=False), Thing("two", "blue", small=True)]
    assert describe(things, "left of") == "red seven left of small blue two"
    assert phrasings(things, "left of")[2] == "a small blue two right of a red seven"
    assert SIZE == 48
