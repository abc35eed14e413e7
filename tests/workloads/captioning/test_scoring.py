"""Scores of captions against numbers worked out by hand, and CIDEr-D against its authors' code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from contracts.workload import Measure, Scores
from tests.loading import loaded
from workloads.captioning import scoring
from workloads.captioning.cider import cider_d
from workloads.captioning.phrases import DIGITS, HELD_OUT, understand
from workloads.captioning.scoring import NOTHING, against_references, judge, of_captions, quality_of
from workloads.captioning.settings import CaptioningSettings
from workloads.captioning.terms import words

ROOT = Path(__file__).parents[3]
ONE, TWO = "red seven", "red seven left of small blue two"


def one(caption: str, *references: str, scene: str = "", ended: bool = True) -> Measure:
    quality = quality_of(caption, references)
    return {
        "caption": caption,
        "references": list(references),
        "scene": scene,
        "tokens": len(caption),
        "ended": ended,
        "quality": quality,
    }


def score(*measures: Measure) -> Scores:
    return scoring.score(iter(measures), CaptioningSettings(), {})


def scene(caption: str, truth: str) -> Measure:
    return one(caption, f"a {truth}", scene=truth)


def text(caption: str, *references: str) -> dict[str, float]:
    return against_references([caption], [references])


def test_bleu_is_the_geometric_mean_of_four_precisions() -> None:
    assert text("a b c d e", "a b c d f")["bleu4"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    assert text("a b c d", "a b c d e")["bleu4"] == pytest.approx(math.exp(1 - 5 / 4))
    assert text("a b c d", "a b c x")["bleu4"] == text("a b c", "a b c")["bleu4"] == 0, "nothing is smoothed"


def test_bleu_counts_over_the_whole_split_and_over_all_references_however_many_each_has() -> None:
    found = against_references(["a b c d", "a b c d e"], [["a b c d", "x"], ["a b c d f", "d e y", "z"]])
    assert found["bleu4"] == pytest.approx((9 / 9 * 7 / 7 * 4 / 5 * 2 / 3) ** (1 / 4))


def test_rouge_is_the_f_measure_against_the_nearest_reference() -> None:
    found = text("a cat on a mat", "dogs bark", "a cat")
    assert found["rouge1"] == pytest.approx(2 * 2 / 5 / (2 / 5 + 1))
    assert found["rouge2"] == pytest.approx(2 * 1 / 4 / (1 / 4 + 1))
    assert found["rougeL"] == found["rougeLsum"] == pytest.approx(4 / 7)


def test_rouge_lsum_compares_sentence_by_sentence() -> None:
    found = text("Red dog. Blue cat.", "Blue cat. Red dog!")
    assert (found["rougeL"], found["rougeLsum"]) == (0.5, 1)


SEEN = [("a red ball rolls by", "a red ball rolls by"), ("two cats sit there now", "two cats sit there now")]


def test_captions_that_fit_the_next_picture_as_well_are_said_to_be_blind() -> None:
    seeing = score(*(one(*each) for each in SEEN))
    assert seeing.metrics["cider"] == 10 and seeing.metrics["cider_of_the_next"] == 0
    blind = score(*(one(SEEN[0][0], reference) for _, reference in SEEN))
    assert blind.metrics["cider"] == blind.metrics["cider_of_the_next"] == 5
    assert not any("hardly depend" in note for note in seeing.notes)
    said = "hardly depend on the pictures: beside its own picture's references a caption has a CIDEr of 5.0000 in the mean"
    assert [note for note in blind.notes if said in note]
    assert "cider_of_the_next" not in score(one(*SEEN[0])).metrics, "there is no other picture"


def test_rouge_keeps_letters_outside_a_to_z() -> None:
    assert text("кошка спит", "кошка ест")["rouge1"] == 0.5


def test_meteor_counts_exact_and_stem_matches_and_no_synonyms() -> None:
    mean, penalty = 0.75 / (0.9 * 1 + 0.1 * 0.75), 0.5 * (1 / 3) ** 3
    assert text("the cat sat", "the cat sat on")["meteor_exact_stem"] == pytest.approx(mean * (1 - penalty))
    assert text("dogs", "cats", "dog")["meteor_exact_stem"] == 0.5, "one match in one chunk: half is lost"
    assert text("couch", "sofa")["meteor_exact_stem"] == 0


def test_cider_weighs_ngrams_by_how_few_pictures_have_them() -> None:
    known = [[["a", "cat"]], [["a", "dog"]]]
    assert cider_d([["a", "cat"], ["a", "cat"]], known).tolist() == pytest.approx([5, 0]), "two of four n-gram lengths"
    assert cider_d([["a"], []], known).tolist() == [0, 0], "what every picture has tells nothing"
    four = [[list("abcd")], [list("efgh")]]
    assert cider_d([list("abcd"), list("efgh")], four).tolist() == pytest.approx([10, 10])
    assert cider_d([list("abcd")], [[list("abcd")]]).tolist() == [0], "of one picture nothing is telling"
    assert cider_d([], []).tolist() == []


def test_cider_is_the_mean_over_references_with_a_penalty_for_length() -> None:
    assert cider_d([list("abcd"), list("z")], [[list("abcd"), list("wxyz")], [list("efgh")]])[0] == pytest.approx(5)
    # Repeating "a" gains nothing: min(6, 1) x 1 over norms 6 and 1, for one n-gram length of four; five words longer.
    expected = 10 / 4 * (1 / 6) * math.exp(-(5**2) / (2 * 6**2))
    assert cider_d([list("aaaaaa"), list("b")], [[list("a")], [list("b")]])[0] == pytest.approx(expected)


# What pycocoevalcap 1.2 gives for these, the authors' code: `scorer = CiderScorer(n=4, sigma=6.0)` of its module
# cider.cider_scorer, `scorer += (caption, references)` for each, `scorer.compute_score()`.
CAPTIONS_AND_REFERENCES = [
    (
        "a man riding a wave on a surfboard",
        [
            "a man rides a wave on top of a surfboard",
            "a surfer in the ocean on a large wave",
            "a man riding a wave on a surfboard in the ocean",
        ],
    ),
    ("a dog dog dog on the grass", ["a brown dog lies on the grass", "the dog sleeps on green grass in the sun"]),
    ("two people", ["two people walk along a beach with a dog"]),
    ("a plate of food", ["a plate of food", "a white plate with rice and vegetables on a table"]),
    ("zebras", ["three zebras drink from a pond in the sun"]),
    ("", ["a red bus on the street", "a bus"]),
]
AUTHORS_SCORES = [
    3.7627759098576137,
    1.4097501094887148,
    1.1939695778141253,
    5.194014711198688,
    0.4352185522893036,
    0.0,
]


def test_cider_equals_its_authors_code() -> None:
    said = [words(caption) for caption, _ in CAPTIONS_AND_REFERENCES]
    known = [[words(one) for one in each] for _, each in CAPTIONS_AND_REFERENCES]
    assert cider_d(said, known).tolist() == pytest.approx(AUTHORS_SCORES, abs=1e-12)


def test_case_and_punctuation_change_no_score() -> None:
    plain = against_references(["a cat on a mat", "a dog"], [["a cat on a red mat"], ["the dog", "a dog"]])
    noisy = against_references(
        ["A cat, on a mat.", "(a) DOG!"], [["a cat on a \u201cred\u201d mat"], ["The dog...", "a dog"]]
    )
    assert noisy == pytest.approx(plain)


def test_distinct_is_the_share_of_different_words_and_pairs() -> None:
    found = of_captions(["a cat", "a dog", "a cat sits"])
    assert found == pytest.approx({"mean_words": 7 / 3, "distinct_1": 4 / 7, "distinct_2": 3 / 4})


def test_a_reference_without_words_is_passed_over() -> None:
    with_it, without = score(one("a cat", "a cat", "!!!"), one("a dog", "...")), score(one("a cat", "a cat"), one("a dog"))
    assert with_it.metrics == without.metrics
    assert with_it.metrics["rouge1"] == 1


def test_ended_and_terms_are_shares_of_the_captions() -> None:
    found = score(one("a man", "a man"), one("a dog", "a dog", ended=False), one("a cat", "a cat"), one("her", "she"))
    assert (found.metrics["ended"], found.metrics["gender_terms"], found.metrics["age_terms"]) == (0.75, 0.5, 0)


def test_quality_ranks_by_the_longest_common_sequence_with_the_nearest_reference() -> None:
    assert quality_of("A cat.", ["dogs bark", "a cat"]) == 1
    assert quality_of("a cat sleeps", ["a dog sleeps", "x"]) == pytest.approx(2 / 3)
    assert quality_of("", ["a cat"]) == quality_of("a cat", []) == 0


@pytest.mark.parametrize(
    "caption",
    [
        "a red seven left of a small blue two",
        "there is a red seven left of a small blue two",
        "a small blue two right of a red seven",
        "A small blue two, right of a red seven.",
    ],
)
def test_every_phrasing_of_a_scene_is_exact(caption: str) -> None:
    found = judge(caption, TWO)
    assert found.exact and len(found.right) == 7 and all(right for _, right in found.right)


@pytest.mark.parametrize(
    ("caption", "truth", "right"),
    [
        ("a red seven", ONE, 3),
        ("a red one", ONE, 2),
        ("a small green one", ONE, 0),
        ("nothing to see", ONE, 0),
        ("", ONE, 0),
        ("a red seven left of a small blue six", TWO, 6),
        ("a red seven above a small blue two", TWO, 6),
        ("a red seven and a small blue two", TWO, 6),
        ("a red seven", TWO, 3),
        ("a red seven left of", TWO, 3),
        ("a red seven left of a small blue two above a red one", TWO, 6),
        ("a red seven right of a small blue two", TWO, 1),
        ("a blue two right of a red seven", TWO, 6),
        ("a small blue two left of a red seven", "red seven right of small blue two", 7),
        ("a red seven right of a small blue two", "red seven right of small blue two", 7),
    ],
)
def test_attributes_are_compared_in_the_order_that_the_relation_gives(caption: str, truth: str, right: int) -> None:
    found = judge(caption, truth)
    assert sum(right for _, right in found.right) == right
    assert len(found.right) == (3 if found.num_things == 1 else 7)
    assert found.exact == (right == len(found.right))


def test_an_added_thing_is_not_exact() -> None:
    found = judge("a red seven left of a small blue two", ONE)
    assert all(right for _, right in found.right) and not found.exact
    assert found.digits == (("seven", "seven"), (NOTHING, "two"))


def new_pair() -> str:
    digit, colour = min(HELD_OUT)
    return f"{colour} {digit}"


def test_pairs_not_seen_in_training_are_counted_apart() -> None:
    assert not {(thing.digit, thing.colour) for thing in understand(TWO)[0]} & HELD_OUT
    scores = score(
        scene("a red seven left of a small blue six", TWO), scene("a red seven", ONE), scene("a red one", new_pair())
    )
    metrics = scores.metrics
    assert metrics["attribute_accuracy"] == pytest.approx(9 / 10)
    assert metrics["digit_accuracy"] == pytest.approx(2 / 3)
    assert metrics["colour_accuracy"] == metrics["size_accuracy"] == metrics["relation_accuracy"] == 1
    assert metrics["attribute_accuracy_without_size"] == pytest.approx(6 / 7)
    assert metrics["exact_match"] == 0.5
    colour, digit = new_pair().split()
    assert metrics["attribute_accuracy_new_pairs"] == pytest.approx(((digit == "one") + (colour == "red") + 1) / 3)
    assert [(row["things"], row["pairs"], row["captions"]) for row in scores.rows] == [
        (1, "seen", 1),
        (1, "new", 1),
        (2, "seen", 1),
    ]
    assert [row["relation_accuracy"] for row in scores.rows] == [None, None, 1]
    assert scores.rows[2]["attribute_accuracy"] == pytest.approx(6 / 7)


def test_what_a_split_cannot_tell_is_left_out() -> None:
    assert "attribute_accuracy" not in score(one("a cat", "a cat")).metrics
    seen = score(scene("a red seven", ONE)).metrics
    assert seen["attribute_accuracy"] == 1 and {"attribute_accuracy_new_pairs", "relation_accuracy"}.isdisjoint(seen)


def test_metrics_of_scenes_are_of_no_other_data() -> None:
    measured = [one("a cat", "a cat")]
    own, embedded = (scoring.score(measured, CaptioningSettings(), {"embedded": is_one}) for is_one in (False, True))
    judged = score(scene("a red seven", TWO), scene("a red one", new_pair())).metrics
    assert set(own.elsewhere) == {name for name in judged if "accuracy" in name or name == "exact_match"}
    assert not embedded.elsewhere and set(own.elsewhere) <= set(own.meanings)


def test_the_charts_say_which_digits_are_taken_for_which() -> None:
    scores = score(scene("a red one left of a small blue two", TWO), scene("a red seven", ONE), scene("", ONE))
    lengths, terms, by_digit, confusion = scores.charts
    assert [chart.kind for chart in scores.charts] == ["lines", "bars", "bars", "matrix"]
    assert lengths.lines["generated"][1] == pytest.approx([1 / 3, 0, 0, 1 / 3, 0, 0, 0, 0, 0, 1 / 3], abs=1e-4)
    assert len(terms.labels) == len(terms.lines["generated"][1]) == 7
    shares = by_digit.lines["pairs seen in training"][1]
    assert list(by_digit.lines) == ["pairs seen in training"]
    assert (shares[7], shares[2], sum(shares)) == (pytest.approx(1 / 3, abs=1e-4), 1, pytest.approx(4 / 3, abs=1e-4))
    labels = confusion.labels
    rows = {true: dict(zip(labels, row, strict=True)) for true, row in zip(labels, confusion.matrix, strict=True)}
    assert (rows["seven"]["seven"], rows["seven"]["one"], rows["seven"][NOTHING], rows["two"]["two"]) == (1, 1, 1, 1)
    assert sum(map(sum, confusion.matrix)) == 4
    assert labels == [*DIGITS, NOTHING]


def test_captions_that_say_what_the_references_say_score_best() -> None:
    scenes = [TWO, "green four above white eight", "small purple five", "yellow one"]
    metrics = score(*(scene(f"a {truth}", truth) for truth in scenes)).metrics
    best = ("bleu4", "rouge1", "rougeL", "attribute_accuracy", "exact_match")
    assert all(metrics[name] == pytest.approx(1) for name in best)


def test_the_scores_of_the_field_are_all_among_what_is_reported() -> None:
    """Each as it is alone: something that is written and never called is in none."""
    said, known = (
        ["a dog runs on the wet grass", "two cats sleep"],
        [["a dog runs on the grass"], ["two cats sleep here", "cats"]],
    )
    metrics = score(*(one(caption, *each) for caption, each in zip(said, known, strict=True))).metrics
    alone = against_references(said, known)
    assert {name: metrics[name] for name in alone} == alone
    assert alone.pop("cider_of_the_next") == 0
    assert set(alone) == {"cider", "bleu4", "rouge1", "rouge2", "rougeL", "rougeLsum", "meteor_exact_stem"}
    assert all(0 < value < 10 for value in alone.values())


def test_every_metric_and_every_column_is_explained() -> None:
    scores = score(scene("a red seven", ONE), scene("a red seven", TWO), scene("a red one", new_pair()))
    assert {*scores.metrics, *scores.rows[0]} == set(scores.meanings)


@pytest.mark.parametrize("measures", [[], [one("", "a cat")], [one("a cat")], [one("!", "?", scene=ONE)]])
def test_where_nothing_was_said_everything_is_a_number(measures: list[Measure]) -> None:
    scores = score(*measures)
    drawn: list[Any] = [value for chart in scores.charts for _, line in chart.lines.values() for value in line]
    assert all(math.isfinite(value) for value in [*scores.metrics.values(), *drawn])
    assert scores.metrics["cider"] == 0


def test_scoring_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score(one("a cat", "a cat"), one("a b c d e", "a b c d"), scene("a red seven", ONE))
    assert capfd.readouterr() == ("", "")


def test_scoring_imports_neither_torch_nor_transformers() -> None:
    code = (
        "from workloads.captioning.scoring import against_references, quality_of, score\n"
        "from workloads.captioning.settings import CaptioningSettings\n"
        "score([{'caption': 'a', 'references': ['a'], 'scene': '', 'ended': True}], CaptioningSettings(), {})"
    )
    assert not loaded(code) & {"torch", "transformers", "matplotlib"}
