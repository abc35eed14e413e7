"""Words as every score counts them, and protected terms: whole words, any case, the longest first."""

from __future__ import annotations

import pytest

from workloads.captioning.terms import _lists, found, groups, rates, words


def test_words_are_lower_case_without_punctuation() -> None:
    assert words('A man\'s T-shirt says "HI" -- it\u2019s 3.5 years_old!') == [
        *("a", "man's", "t", "shirt", "says", "hi", "it's", "3", "5", "years", "old"),
    ]


def test_words_keep_letters_with_accents_however_they_are_written() -> None:
    assert words("un café") == words("UN CAFE\u0301") == ["un", "café"]


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A WOMAN with two Dogs", {"gender": ["woman"]}),
        ("the woman's bag, for men", {"gender": ["woman", "men"]}),
        ("two humans mend a mangrove hedge", {}),
        ("an African-American man", {"race_and_ethnicity": ["african american"], "gender": ["man"]}),
        ("a black cat on an old chair behind a blind", {}),
        ("a blind man", {"disability": ["blind man"], "gender": ["man"]}),
        ("an old black man", {"gender": ["man"], "race_and_ethnicity": ["black man"]}),
        ("a Buddhist monk and a German", {"religion": ["buddhist", "monk"], "nationality": ["german"]}),
        ("a gay couple", {"sexual_orientation": ["gay"]}),
        ("", {}),
    ],
)
def test_terms_are_found_as_whole_words_by_group(caption: str, named: dict[str, list[str]]) -> None:
    assert found(caption) == named


def test_the_longest_term_counts_and_not_what_lies_inside_it() -> None:
    assert found("a wheelchair user")["disability"] == ["wheelchair user"]
    assert found("a wheelchair")["disability"] == ["wheelchair"]
    assert found("an old man and a child")["age"] == ["old man", "child"]


def test_a_phrase_that_means_something_else_is_no_term() -> None:
    assert found("french fries, a German shepherd and nail polish on a king-size bed") == {}
    assert found("a French chef eats french fries") == {"nationality": ["french"]}


def test_a_rate_is_the_share_of_captions_however_many_terms_each_has() -> None:
    found_rates = rates(["a man and a woman", "a dog", "her son", "an elderly Sikh"])
    assert found_rates == {**dict.fromkeys(groups(), 0.0), "gender": 0.5, "age": 0.25, "religion": 0.25}
    assert rates([]) == dict.fromkeys(groups(), 0.0)


def test_the_groups_are_those_that_are_promised() -> None:
    assert groups() == (
        *("gender", "race_and_ethnicity", "nationality", "religion", "disability", "age", "sexual_orientation"),
    )


@pytest.mark.parametrize("group", _lists())
def test_every_term_of_the_lists_can_be_found_and_stands_there_once(group: str) -> None:
    terms = _lists()[group]
    assert len(terms) == len(set(terms))
    if group.startswith("not_"):
        blocked = groups() if group == "not_terms" else (group.removeprefix("not_"),)
        assert [term for term in terms if set(blocked) & set(found(f"the {term}."))] == []
    else:
        assert [term for term in terms if found(f"The {term.title()}.").get(group) != [term]] == []
