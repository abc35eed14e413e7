"""How good the parsed data are, without a model: duplicates, lengths, words and their balance, protected terms, weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contracts.files import write_json
from contracts.workload import Facts
from workloads.captioning.duplicates import alike_pairs
from workloads.captioning.settings import CaptioningSettings
from workloads.captioning.terms import rates, words

if TYPE_CHECKING:
    from contracts.records import Records

# Captions are nearly the same where this share of their content words is.
NEAR = Fraction(4, 5)
# A content word in fewer captions than this is a rare object.
RARE = 5
TOP = (10, 100)
# No picture is drawn more than this many times as often as a usual one, or as seldom.
MOST = 4.0
SHOWN, SHOWN_WORDS, GROWTH_POINTS = 10, 30, 50
_STOP_WORDS = (
    "a about across after again against all along also am among an and another any are aren around as at be because been"
    " before being between both but by can cannot could couldn did didn do does doesn doing don down during each either"
    " every few for from front had has have having he her here hers him his how i if in inside into is isn it its itself"
    " just like many may me might more most much my near next no nor not of off on onto or other our out outside over own"
    " several she should some something such than that the their them then there these they this those through to together"
    " toward towards under until up upon us various very was wasn we were weren what when where which while who whose will"
    " with within without would you your"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True)
class Said:
    """Captions one after the other, and for each the position of its picture's record [n]; `num_pictures` in all."""

    captions: list[str]
    pictures: NDArray[np.int64]
    num_pictures: int

    @classmethod
    def of(cls, records: Records) -> Said:
        """Every caption of every record, in order."""
        column = records.table["targets"].to_pylist()
        each = [column[position]["captions"] for position in records.positions.tolist()]
        owners = np.repeat(np.arange(len(each)), np.array([len(one) for one in each], int))
        return cls([caption for one in each for caption in one], owners, len(each))

    @cached_property
    def owners(self) -> list[int]:
        return self.pictures.tolist()

    @cached_property
    def texts(self) -> list[str]:
        return [caption.strip() for caption in self.captions]

    @cached_property
    def words(self) -> list[list[str]]:
        return [words(caption) for caption in self.captions]

    @cached_property
    def content(self) -> list[list[str]]:
        return [content_words(one) for one in self.words]


def quality(records: Records, settings: CaptioningSettings, facts: Facts, folder: Path) -> dict[str, Any]:
    """Write quality.json, quality.md with its pictures, and weights.npy to `folder`; gives what quality.json holds."""
    from workloads.captioning.quality_page import write_page

    numbers = examine(records)
    report = {
        "findings": findings(numbers),
        **numbers,
        "weights": write_weights(folder / "weights.npy", records.split("train")),
        "meanings": MEANINGS,
    }
    write_json(folder / "quality.json", report)
    write_page(folder, report)
    return report


def examine(records: Records) -> dict[str, Any]:
    """Everything that is counted; MEANINGS says what it is."""
    said = Said.of(records)
    return {
        "pictures": pictures(records, said),
        "captions": {"num": len(said.captions), **lengths(said)},
        "duplicates": {"exact": exact_duplicates(said), "near": near_duplicates(said)},
        "vocabulary": vocabulary(said),
        "objects": objects(said),
        "terms": rates(said.captions),
    }


def content_words(caption: Sequence[str]) -> list[str]:
    """The words that tell what is there: no stop words, no numbers in figures, no single letters; "dog's" is "dog"."""
    plain = (word.partition("'")[0] for word in caption)
    return [word for word in plain if len(word) > 1 and word not in STOP_WORDS and not word.isdigit()]


def weights(records: Records) -> NDArray[np.float32]:
    """How often each record should be drawn, mean 1 [n]: the fewer pictures share its rarest content word, the more often.

    The median number of pictures over this picture's own, no more than MOST and no less than 1/MOST, over the mean of all.
    A picture without content words counts as a usual one.
    """
    said = Said.of(records)
    of_picture: list[set[str]] = [set() for _ in range(said.num_pictures)]
    for owner, content in zip(said.owners, said.content, strict=True):
        of_picture[owner].update(content)
    holders = Counter(word for one in of_picture for word in one)
    sharing = np.array([min((holders[word] for word in one), default=0) for one in of_picture], float)
    if not sharing.any():
        return np.ones(len(sharing), np.float32)
    usual = np.median(sharing[sharing > 0])
    drawn = np.clip(usual / np.where(sharing > 0, sharing, usual), 1 / MOST, MOST)
    return (drawn / drawn.mean()).astype(np.float32)


def write_weights(path: Path, train: Records) -> dict[str, Any]:
    """Write the weights of the split train as float32, and give what is to be known of them."""
    found = weights(train)
    np.save(path, found)
    return {
        "file": path.name,
        "meaning": "float32, a weight for each record of the split train in its order, mean 1: training draws by them, to"
        " the power of prepare.balance, and so shows pictures with rare words more often. A weight is the median number of pictures that share a picture's rarest"
        f" content word over the number that shares this one's, within 1/{MOST:g} and {MOST:g} before the mean is made 1.",
        "records": len(found),
        "fingerprint": train.fingerprint,
        "smallest": float(found.min(initial=1)),
        "largest": float(found.max(initial=1)),
        "effective_share": float(found.sum() ** 2 / max(len(found) * (found.astype(float) ** 2).sum(), 1e-12)),
    }


def pictures(records: Records, said: Said) -> dict[str, Any]:
    """Pictures, how many captions each has, and those whose files are the same byte for byte."""
    table, positions = records.table, records.positions.tolist()
    columns = (table[name].to_pylist() for name in ("key", "split", "inputs"))
    keys, splits, inputs = ([column[position] for position in positions] for column in columns)
    same = _together(one["sha256"] or f"row {index}" for index, one in enumerate(inputs))
    groups = [group for group in same if len(group) > 1]
    counts = Counter(np.bincount(said.pictures, minlength=said.num_pictures).tolist())
    return {
        "num": said.num_pictures,
        "by_split": dict(Counter(splits)),
        "captions_each": {str(number): counts[number] / max(said.num_pictures, 1) for number in sorted(counts)},
        "same_bytes": {
            "pictures": sum(map(len, groups)),
            "share": sum(map(len, groups)) / max(said.num_pictures, 1),
            "groups": len(groups),
            "groups_across_splits": sum(len({splits[index] for index in group}) > 1 for group in groups),
            "examples": [[keys[index] for index in group[:SHOWN]] for group in groups[:SHOWN]],
        },
    }


def lengths(said: Said) -> dict[str, Any]:
    """Words a caption: mean, quantiles, extremes, and how many captions have each length."""
    counts = np.array([len(one) for one in said.words], int)
    if not len(counts):
        return {"mean_words": 0.0, "quantiles": {}, "shortest": 0, "longest": 0, "histogram": {}}
    quantiles = {str(percent): float(np.percentile(counts, percent)) for percent in (5, 25, 50, 75, 95)}
    histogram = {str(length): number for length, number in sorted(Counter(counts.tolist()).items())}
    return {
        "mean_words": float(counts.mean()),
        "quantiles": quantiles,
        "shortest": int(counts.min()),
        "longest": int(counts.max()),
        "histogram": histogram,
    }


def exact_duplicates(said: Said) -> dict[str, Any]:
    """Captions whose text another caption has, too, character for character but for white space at the ends."""
    groups = [group for group in _together(said.texts) if len(group) > 1]
    across = [group for group in groups if len({said.owners[index] for index in group}) > 1]
    largest = sorted(groups, key=lambda group: -len(group))[:SHOWN]
    return {
        **_shares(said, sum(map(len, groups)), sum(map(len, across))),
        "groups": len(groups),
        "examples": [{"caption": said.texts[group[0]], "times": len(group)} for group in largest],
    }


def near_duplicates(said: Said) -> dict[str, Any]:
    """Captions that share NEAR of their content words (Porter stems, in any order) with another one of a different text."""
    sets = _stems(said)
    distinct, members = list(dict.fromkeys(sets)), _together(sets)
    neighbours: list[list[int]] = [[] for _ in distinct]
    for one, other in alike_pairs(distinct, NEAR):
        neighbours[one].append(other)
        neighbours[other].append(one)
    texts = [{said.texts[index] for index in mine} for mine in members]
    found = [number for number in range(len(distinct)) if neighbours[number] or len(texts[number]) > 1]
    across = sum(_alike_elsewhere(said, members, number, neighbours[number]) for number in found)
    return {
        **_shares(said, sum(len(members[number]) for number in found), across),
        "least_overlap": float(NEAR),
        "examples": _examples(said, members, {number: neighbours[number] for number in found}),
    }


def _stems(said: Said) -> list[frozenset[str]]:
    """The stems of each caption's content words; where it has none all its words, and without any the text."""
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer()
    stems = {word: stemmer.stem(word) for word in {word for one in said.content for word in one}}
    return [
        frozenset(stems[word] for word in content) or frozenset(plain) or frozenset([text])
        for content, plain, text in zip(said.content, said.words, said.texts, strict=True)
    ]


def _alike_elsewhere(said: Said, members: Sequence[list[int]], number: int, neighbours: Sequence[int]) -> int:
    """How many captions of a set of words have a near-duplicate that belongs to another picture."""
    owners, texts, mine = said.owners, said.texts, members[number]
    near = {owners[index] for other in neighbours for index in members[other]}
    return sum(
        len(near) > (owners[index] in near)
        or any(owners[other] != owners[index] and texts[other] != texts[index] for other in mine)
        for index in mine
    )


def _examples(said: Said, members: Sequence[list[int]], found: Mapping[int, Sequence[int]]) -> list[list[str]]:
    """A few texts with those nearly the same, the most frequent first; none twice."""
    sizes = {one: sum(len(members[each]) for each in (one, *others)) for one, others in found.items()}
    shown: list[list[str]] = []
    used: set[int] = set()
    for one in sorted(found, key=lambda one: -sizes[one]):
        together = [one, *found[one]]
        if len(shown) < SHOWN and used.isdisjoint(together):
            used.update(together)
            shown.append(list(dict.fromkeys(said.texts[index] for each in together for index in members[each]))[:SHOWN])
    return shown


def _shares(said: Said, captions: int, across: int) -> dict[str, Any]:
    total = max(len(said.captions), 1)
    return {"captions": captions, "share": captions / total, "share_across_pictures": across / total}


def vocabulary(said: Said) -> dict[str, Any]:
    """Different words, and how many there were after so many captions."""
    seen: set[str] = set()
    sizes: list[int] = []
    for one in said.words:
        seen.update(one)
        sizes.append(len(seen))
    places = np.unique(np.geomspace(1, len(sizes), GROWTH_POINTS).round().astype(int)) if sizes else np.zeros(0, int)
    growth = {"captions": places.tolist(), "words": [sizes[place - 1] for place in places.tolist()]}
    return {"words": len(seen), "growth": growth}


def objects(said: Said) -> dict[str, Any]:
    """Content words and the captions that name them: the most frequent, how evenly they are spread, the rare ones."""
    captions = Counter(word for one in said.content for word in set(one))
    counts = np.sort(np.array(list(captions.values()), float))
    rare = sorted(word for word, number in captions.items() if number < RARE)
    ordered = sorted(captions.items(), key=lambda item: (-item[1], item[0]))
    return {
        "words": len(captions),
        "most_frequent": [list(item) for item in ordered[:SHOWN_WORDS]],
        "gini": gini(counts),
        "top_share": {str(top): float(counts[::-1][:top].sum() / max(counts.sum(), 1)) for top in TOP},
        "lorenz": _lorenz(counts),
        "rare": {
            "in_fewer_than": RARE,
            "words": len(rare),
            "share": len(rare) / max(len(captions), 1),
            "examples": rare[:SHOWN_WORDS],
        },
    }


def gini(counts: Iterable[float]) -> float:
    """Gini's coefficient: 0 where all counts are equal, towards 1 where one has everything; 0 for none."""
    ordered = np.sort(np.asarray(list(counts), float))
    if not ordered.sum():
        return 0.0
    places = np.arange(1, len(ordered) + 1)
    return float(2 * (places * ordered).sum() / (len(ordered) * ordered.sum()) - (len(ordered) + 1) / len(ordered))


def _lorenz(ordered: NDArray[np.float64], points: int = 101) -> dict[str, list[float]]:
    """The share of all counts that the so many smallest have: what Gini's coefficient is the area of."""
    shares = np.concatenate([[0], np.cumsum(ordered) / max(ordered.sum(), 1)])
    grid = np.linspace(0, 1, points)
    return {"words": grid.round(4).tolist(), "counts": np.interp(grid, np.linspace(0, 1, len(shares)), shares).tolist()}


def _together(values: Iterable[Any]) -> list[list[int]]:
    """The positions of equal values, in order of the first of each."""
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        groups[value].append(index)
    return list(groups.values())


def findings(report: Mapping[str, Any]) -> list[str]:
    """What the numbers say, a sentence each."""
    captions, same = report["captions"], report["pictures"]["same_bytes"]
    exact, near, rare = report["duplicates"]["exact"], report["duplicates"]["near"], report["objects"]["rare"]
    said = [
        f"{report['pictures']['num']:,} pictures, {captions['num']:,} captions of {captions['mean_words']:.1f} words on"
        f" average; {report['vocabulary']['words']:,} different words.",
        f"{exact['share']:.1%} of the captions have the text of another one ({exact['share_across_pictures']:.1%}: of"
        f" another picture); {near['share']:.1%} share {float(NEAR):.0%} or more of their content words with another text"
        f" ({near['share_across_pictures']:.1%}: of another picture).",
        f"{rare['words']:,} of {report['objects']['words']:,} content words are in fewer than {RARE} captions; Gini's"
        f" coefficient of content words is {report['objects']['gini']:.2f}.",
    ]
    if same["pictures"]:
        said.append(f"{same['pictures']:,} pictures are the same file as another one, byte for byte.")
    if same["groups_across_splits"]:
        said.append(
            f"{same['groups_across_splits']:,} pictures lie in more than one split: scores will flatter. Take them out of"
            " the data, or give the data set official splits."
        )
    return said


MEANINGS = {
    "duplicates.exact": "Captions whose text another one has, too, character for character but for white space at the ends.",
    "duplicates.near": "Captions of different texts whose content words, as Porter stems and in any order, overlap by"
    f" {float(NEAR):g} or more (words shared over words of either).",
    "objects": "Content words: no stop words, no figures, no single letters. Nothing tells nouns from other words, so"
    " colours and verbs count as well, and dog and dogs are two words.",
    "objects.gini": "How unevenly captions are spread over content words: 0 evenly, towards 1 all on one.",
    "objects.top_share": "The share of all mentions (a word and a caption that has it) that so many top words have.",
    "objects.rare": f"Content words in fewer than {RARE} captions.",
    "vocabulary.growth": "Different words after so many captions, in the order of the records.",
    "terms": "The share of captions that name a term of each group (workloads/captioning/terms.yaml).",
    "pictures.same_bytes": "Pictures whose files have the same SHA-256.",
    "weights.effective_share": "The share of the records that a sampler by these weights is worth: 1 where all are equal.",
}
