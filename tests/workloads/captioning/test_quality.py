"""The data quality report: duplicates, words, balance and weights, on captions small enough to count."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contracts.files import read_json
from contracts.records import Record, Records, write_records
from contracts.workload import load
from tasks.stage import SAMPLING_WEIGHTS
from tasks.weighing import write_weights
from workloads.captioning.duplicates import alike_pairs
from workloads.captioning.quality import Said, content_words, examine, findings, gini, near_duplicates, quality, weights
from workloads.captioning.settings import CaptioningSettings
from workloads.captioning.terms import words

INPUTS = pa.struct(
    [("image", pa.string()), ("row", pa.int32()), ("width", pa.int32()), ("height", pa.int32()), ("sha256", pa.string())]
)
TARGETS = pa.struct([("captions", pa.list_(pa.string())), ("scene", pa.string())])
SURFER = ("A man riding a wave on top of a surfboard.", "A man rides the wave on his surfboard")


def write(folder: Path, pictures: Sequence[Sequence[str]], *, hashes: str = "", splits: Sequence[str] = ()) -> Records:
    """Records with these captions, a letter of `hashes` and a split (train) each."""
    records = [
        Record(
            f"{index}.png",
            "",
            {
                "image": f"{index}.png",
                "row": -1,
                "width": 4,
                "height": 4,
                "sha256": (hashes[index] if hashes else str(index)) * 64,
            },
            {"captions": list(captions), "scene": ""},
            splits[index] if splits else "train",
        )
        for index, captions in enumerate(pictures)
    ]
    write_records(folder, records, inputs=INPUTS, targets=TARGETS, shares=(1, 0, 0))
    return Records.open(folder, root=folder)


def report(folder: Path, pictures: Sequence[Sequence[str]], **given: Any) -> dict[str, Any]:
    return examine(write(folder / "parse", pictures, **given))


def test_captions_with_the_same_text_are_exact_duplicates(tmp_path: Path) -> None:
    found = report(tmp_path, [["a cat ", "a cat"], ["a dog"], ["a dog"], ["A dog"], ["a cow"]])
    exact = found["duplicates"]["exact"]
    assert (exact["captions"], exact["groups"], exact["share"]) == (4, 2, pytest.approx(4 / 6))
    assert exact["share_across_pictures"] == pytest.approx(2 / 6), "the two of one picture do not count here"
    assert exact["examples"] == [{"caption": "a cat", "times": 2}, {"caption": "a dog", "times": 2}]


def test_captions_that_share_four_of_five_content_words_are_near_duplicates(tmp_path: Path) -> None:
    horse = ["A man rides a horse on the beach.", "A man rides a horse on the street."]
    found = report(tmp_path, [[SURFER[0]], [SURFER[1]], [horse[0]], [horse[1]]])["duplicates"]["near"]
    assert (found["captions"], found["share_across_pictures"]) == (2, 0.5)
    assert found["examples"] == [list(SURFER)]


def test_captions_that_differ_in_case_punctuation_and_articles_are_near_duplicates(tmp_path: Path) -> None:
    found = near_duplicates(Said.of(write(tmp_path, [["A cat.", "the cats", "a cat", "a dog", "It is.", "It was!", "..."]])))
    assert (found["captions"], found["share_across_pictures"]) == (3, 0)
    assert found["examples"] == [["A cat.", "the cats", "a cat"]]


def test_exact_duplicates_alone_are_no_near_duplicates(tmp_path: Path) -> None:
    assert near_duplicates(Said.of(write(tmp_path, [["a cat"], [" a cat"]])))["captions"] == 0


@pytest.mark.parametrize("least", [Fraction(1, 2), Fraction(2, 3), Fraction(4, 5), Fraction(1)])
def test_no_pair_that_overlaps_enough_is_missed_and_none_is_invented(least: Fraction) -> None:
    rng = np.random.default_rng(0)
    sets = list({frozenset(map(str, rng.zipf(1.3, rng.integers(1, 9)).clip(max=15).tolist())) for _ in range(400)})
    wanted = {
        (one, other)
        for one in range(len(sets))
        for other in range(one)
        if Fraction(len(sets[one] & sets[other]), len(sets[one] | sets[other])) >= least
    }
    found = list(alike_pairs(sets, least))
    assert {(max(pair), min(pair)) for pair in found} == wanted and len(found) == len(wanted)
    assert least == 1 or len(wanted) > 50


def test_likeness_is_not_passed_on_from_caption_to_caption(tmp_path: Path) -> None:
    chain = ["dog cat cow pig", "dog cat cow pig owl", "dog cat cow pig owl fox", "bear"]
    found = near_duplicates(Said.of(write(tmp_path, [chain[:1], chain[1:2], chain[2:]])))
    assert (found["captions"], found["share_across_pictures"]) == (3, 0.75)
    assert found["examples"] == [[chain[1], chain[0], chain[2]]], "each is shown with those that it is like itself"
    ends = near_duplicates(Said.of(write(tmp_path / "ends", [chain[:1], chain[2:]])))
    assert ends["captions"] == 0, "4 of 6 words are shared"


def test_near_duplicates_of_one_picture_are_not_counted_as_of_others(tmp_path: Path) -> None:
    found = near_duplicates(Said.of(write(tmp_path, [list(SURFER), ["a bear"]])))
    assert (found["captions"], found["share_across_pictures"]) == (2, 0)


def test_pictures_with_the_same_bytes_are_named_and_splits_that_share_them_are_a_finding(tmp_path: Path) -> None:
    pictures = [["a cat"], ["a dog"], ["a cow"], ["a pig"], ["an owl"]]
    splits = ["train", "train", "train", "test", "val"]
    found = report(tmp_path, pictures, hashes="aabbc", splits=splits)
    same = found["pictures"]["same_bytes"]
    assert (same["pictures"], same["groups"], same["groups_across_splits"]) == (4, 2, 1)
    assert same["examples"] == [["0.png", "1.png"], ["2.png", "3.png"]]
    assert any("1 pictures lie in more than one split" in one for one in findings(found))


def test_lengths_are_in_words(tmp_path: Path) -> None:
    captions = report(tmp_path, [["one two three", "one"], ["a b c d e"]])["captions"]
    assert (captions["num"], captions["mean_words"], captions["shortest"], captions["longest"]) == (3, 3, 1, 5)
    assert captions["quantiles"]["50"] == 3
    assert captions["histogram"] == {"1": 1, "3": 1, "5": 1}


def test_the_share_of_pictures_by_number_of_captions(tmp_path: Path) -> None:
    found = report(tmp_path, [["a cat", "a dog"], ["a cow"], ["a pig"], ["an owl"]])
    assert found["pictures"]["captions_each"] == {"1": 0.75, "2": 0.25}


def test_the_vocabulary_grows_with_the_captions_read(tmp_path: Path) -> None:
    vocabulary = report(tmp_path, [["a cat"], ["a cat"], ["a dog runs"]])["vocabulary"]
    assert vocabulary == {"words": 4, "growth": {"captions": [1, 2, 3], "words": [2, 2, 4]}}


def test_content_words_are_those_that_tell_what_is_there() -> None:
    caption = "There is the dog's ball, and it isn't on 2 of John's x-rays"
    assert content_words(words(caption)) == ["dog", "ball", "john", "rays"]


def test_objects_count_captions_and_not_repetitions(tmp_path: Path) -> None:
    found = report(tmp_path, [["a dog and a dog", "a dog"], *[["a cat"]] * 6, ["an owl"]])["objects"]
    assert found["most_frequent"] == [["cat", 6], ["dog", 2], ["owl", 1]]
    assert found["rare"] == {"in_fewer_than": 5, "words": 2, "share": pytest.approx(2 / 3), "examples": ["dog", "owl"]}
    # Sorted 1, 2, 6: 2 x (1 x 1 + 2 x 2 + 3 x 6) / (3 x 9) - 4 / 3.
    assert found["gini"] == pytest.approx(46 / 27 - 4 / 3)
    assert found["top_share"] == {"10": 1, "100": 1}


def test_the_top_share_is_of_all_mentions(tmp_path: Path) -> None:
    rare = [[f"word{letter}"] for letter in "abcdefghijklmnopqrst"]
    top = report(tmp_path, [*[["cat"]] * 11, *rare])["objects"]["top_share"]
    assert top == {"10": pytest.approx(20 / 31), "100": 1}


def test_gini_is_0_for_equal_counts_and_near_1_where_one_has_all() -> None:
    assert gini([3, 3, 3]) == pytest.approx(0)
    assert gini([0] * 99 + [5]) == pytest.approx(0.99)
    assert gini([]) == gini([0, 0]) == 0


def test_protected_terms_are_shares_of_captions(tmp_path: Path) -> None:
    terms = report(tmp_path, [["a man", "a dog"], ["a woman and her child"], ["a cat"]])["terms"]
    assert (terms["gender"], terms["age"], terms["religion"]) == (0.5, 0.25, 0)


def test_weights_are_inverse_to_how_many_pictures_share_the_rarest_word(tmp_path: Path) -> None:
    found = weights(write(tmp_path, [["a dog"], ["the dog", "dog"], ["a dog"], ["a dog with an owl"]]))
    # Pictures that share the rarest word: 4, 4, 4, 1; their median over each: 1, 1, 1, 4; mean 7/4.
    assert found.dtype == np.float32 and found.tolist() == pytest.approx([4 / 7, 4 / 7, 4 / 7, 16 / 7])


def test_weights_are_clipped_and_a_picture_without_content_words_is_a_usual_one(tmp_path: Path) -> None:
    found = weights(write(tmp_path, [*[["a dog"]] * 9, ["an owl"], ["it is"]]))
    assert found.tolist() == pytest.approx(np.array([1] * 9 + [4, 1]) * 11 / 14)
    many = weights(write(tmp_path / "many", [*[["dog"]] * 20, *[[f"word{index}"] for index in range(21)]]))
    assert many[0] / many[-1] == pytest.approx(1 / 4)
    assert weights(write(tmp_path / "none", [["it is"], ["it was"]])).tolist() == [1, 1]


def test_the_report_is_a_page_with_pictures_numbers_and_the_weights_of_train(tmp_path: Path) -> None:
    pictures = [["a `dog`", "a dog"], ["a cat | here"], ["an owl"], ["the cat here"]]
    records, folder = write(tmp_path / "parse", pictures, splits=["train", "train", "test", "val"]), tmp_path / "report"
    folder.mkdir()
    found = quality(records, CaptioningSettings(), {}, folder)
    pngs = {"lengths.png", "vocabulary.png", "words.png", "balance.png", "terms.png"}
    assert {path.name for path in folder.iterdir()} == {*pngs, "quality.md", "quality.json", "weights.npy"}
    assert read_json(folder / "quality.json") == found
    stored = np.load(folder / "weights.npy")
    train = records.split("train")
    assert stored.tolist() == weights(train).tolist() and len(stored) == found["weights"]["records"] == 2
    assert found["weights"]["fingerprint"] == train.fingerprint
    page = (folder / "quality.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in page for name in pngs) and all((folder / name).read_bytes()[1:4] == b"PNG" for name in pngs)
    assert "a 'dog'" in page and "nan" not in page


def test_data_without_captions_give_a_report_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    found = quality(write(tmp_path / "parse", [[], []]), CaptioningSettings(), {}, tmp_path / "report")
    assert found["captions"]["num"] == 0 and found["objects"]["gini"] == 0
    assert found["pictures"]["captions_each"] == {"0": 1}


def test_balance_draws_by_the_weights_of_the_report_to_a_power(tmp_path: Path) -> None:
    captions = [["a cat"]] * 6 + [["a dog"]] * 3 + [["a unicorn"]]
    records = write(tmp_path / "parse", captions)
    report = weights(records.split("train")).astype(float)
    assert report[-1] > report[6] > report[0]
    for power in (0.5, 1.0):
        settings = CaptioningSettings.model_validate({"prepare": {"balance": power}})
        write_weights(tmp_path, load("captioning"), records, settings, name="captioning")
        assert np.load(tmp_path / SAMPLING_WEIGHTS) == pytest.approx(report**power)
