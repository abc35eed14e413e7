"""How good generated captions are: the field's scores against references, and on the embedded data what is right of a scene.

Every score sees captions as `terms.words` cuts them: lower case, no punctuation. No torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np

from contracts.workload import Chart, Facts, Measure, Scores
from workloads.captioning.bases import not_pretrained, reached
from workloads.captioning.cider import cider_d
from workloads.captioning.phrases import DIGITS, HELD_OUT, OPPOSITE, Thing, understand
from workloads.captioning.settings import CaptioningSettings
from workloads.captioning.terms import groups, rates, words
from workloads.captioning.words import cut

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
KINDS = ("digit", "colour", "size", "relation")
ATTRIBUTES = (
    *(f"{kind}_accuracy" for kind in KINDS),
    "attribute_accuracy",
    "attribute_accuracy_without_size",
    "attribute_accuracy_new_pairs",
    "exact_match",
)
NO_SCENES = "only the embedded data have attributes to get right"
NOTHING = "nothing"
CLIP = {
    "clip_score": "CLIPScore (Hessel et al. 2021) by the model of evaluate.clip: 2.5 times the cosine of picture and caption, at"
    " least 0, mean over captions; to be compared only where the same CLIP model was asked.",
    "ref_clip_score": "RefCLIPScore: the harmonic mean of CLIPScore and of the cosine of the caption and its nearest reference,"
    " mean over captions.",
}
WITHOUT_CLIP = "CLIPScore was not computed: captioning.evaluate.clip names no CLIP model."
# A captioner of which others' pictures get more of its CIDEr than this hardly looks at its own.
BLIND = 0.9
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def score(measures: Iterable[Measure], settings: CaptioningSettings, facts: Facts) -> Scores:
    """The scores of a split; on the embedded data (measures with a scene) also of attributes, with a table.

    References without a word are passed over, and so is a picture that has no others. What no picture of the split can tell
    (pairs held out, where none is there) is left out.
    """
    measures = list(measures)
    captions = [each["caption"] for each in measures]
    references = [[one for one in each["references"] if words(one)] for each in measures]
    judged = [judge(each["caption"], each["scene"]) for each in measures if each["scene"]]
    metrics = {
        **against_references(captions, references),
        **{name: _mean([each[name] for each in measures]) for name in CLIP if measures and name in measures[0]},
        **of_captions(captions),
        "ended": _mean([float(each["ended"]) for each in measures]),
        **{f"{group}_terms": rate for group, rate in rates(captions).items()},
        **_attribute_metrics(judged),
    }
    charts = [_lengths(captions, references), _terms(captions, references), *_digit_charts(judged)]
    said, notes = (CLIP, []) if settings.evaluate.clip else ({}, [WITHOUT_CLIP])
    too_long = cut(facts.get("caption_tokens", {}), longest=settings.train.longest)
    notes = [note for note in (not_pretrained(facts), reached(facts), too_long, blindness(metrics), *notes) if note]
    elsewhere = {} if facts.get("embedded", True) else dict.fromkeys(ATTRIBUTES, NO_SCENES)
    return Scores(metrics, _rows(judged), charts, {**meanings(), **said}, notes, elsewhere)


def quality_of(caption: str, references: Sequence[str]) -> float:
    """ROUGE-L (F) against the nearest reference, 0 to 1: cheap, for ranking examples."""
    return _rouge(("rougeL",)).score_multi(references, caption)["rougeL"].fmeasure if references else 0.0


def against_references(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-4, ROUGE, METEOR without synonyms and CIDEr-D; 0 where nothing has a reference.

    CIDEr-D once more with each caption beside the references of the next picture, where there is one.
    """
    pairs = [(caption, each) for caption, each in zip(captions, references, strict=True) if each]
    rouges = [_rouge(ROUGE).score_multi([_lines(one) for one in each], _lines(caption)) for caption, each in pairs]
    said, known = [words(caption) for caption, _ in pairs], [[words(one) for one in each] for _, each in pairs]
    return {
        "cider": _mean(cider_d(said, known)),
        **({"cider_of_the_next": _mean(cider_d(said, [*known[1:], known[0]]))} if len(known) > 1 else {}),
        "bleu4": _bleu4(said, known),
        **{name: _mean([each[name].fmeasure for each in rouges]) for name in ROUGE},
        "meteor_exact_stem": _mean([_meteor(mine, each) for mine, each in zip(said, known, strict=True)]),
    }


def blindness(metrics: Mapping[str, float]) -> str | None:
    """What a user must know whose captioner says of a picture what would fit any other; None where it does not."""
    own, other = metrics["cider"], metrics.get("cider_of_the_next", 0.0)
    if not own or other <= BLIND * own:
        return None
    return (
        f"The captions hardly depend on the pictures: beside its own picture's references a caption has a CIDEr of {own:.4f} in the"
        f" mean, and beside those of the next picture one of {other:.4f}."
    )


def of_captions(captions: Sequence[str]) -> dict[str, float]:
    """How long captions are and how much they vary."""
    said = [words(caption) for caption in captions]
    found = {"mean_words": _mean([len(one) for one in said])}
    for size in (1, 2):
        grams = Counter(tuple(one[start : start + size]) for one in said for start in range(len(one) - size + 1))
        found[f"distinct_{size}"] = len(grams) / max(grams.total(), 1)
    return found


class _Words:
    """Words as `rouge_score` asks for them; its own tokenizer drops every letter outside a to z."""

    tokenize = staticmethod(words)


@cache
def _rouge(kinds: tuple[str, ...]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(kinds, tokenizer=_Words())


def _lines(text: str) -> str:
    """Each sentence on a line of its own, as ROUGE-Lsum wants it."""
    return _SENTENCE_END.sub("\n", text.strip())


def _bleu4(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    from sacrebleu.metrics import BLEU  # pyright: ignore[reportPrivateImportUsage]

    if not captions:
        return 0.0
    joined = [[" ".join(one) for one in each] for each in references]
    streams: list[Any] = list(zip_longest(*joined))
    bleu = BLEU(tokenize="none", smooth_method="none")
    return bleu.corpus_score([" ".join(one) for one in captions], streams).score / 100


class _NoSynonyms:
    """Stands for WordNet, which does not come with any package: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _meteor(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from nltk.translate.meteor_score import meteor_score

    no_synonyms: Any = _NoSynonyms()
    return float(meteor_score(references, caption, wordnet=no_synonyms))


@dataclass(frozen=True)
class Judged:
    """What a caption gets right of an embedded scene.

    `num_things` of the truth; `new_pair`: it holds a pair that no caption of train names. `right` has a kind (KINDS) and
    whether it is right for every attribute of the truth; `digits` are true and said ones, NOTHING where there is none;
    `exact`: all is right and nothing is added.
    """

    num_things: int
    new_pair: bool
    right: tuple[tuple[str, bool], ...]
    digits: tuple[tuple[str, str], ...]
    exact: bool


def judge(caption: str, scene: str) -> Judged:
    """Compare the things that a caption names with a scene's (`phrases.describe`), in the order that their relation gives.

    A thing that is missing has every attribute wrong, and the relation is wrong unless the number of things is right.
    """
    (truth, where), (said, whence) = _in_order(scene), _in_order(caption)
    right: list[tuple[str, bool]] = []
    for index, thing in enumerate(truth):
        mine = said[index] if index < len(said) else None
        right += [
            ("digit", mine is not None and mine.digit == thing.digit),
            ("colour", mine is not None and mine.colour == thing.colour),
            ("size", mine is not None and mine.small == thing.small),
        ]
    if where:
        right.append(("relation", whence == where and len(said) == len(truth)))
    names = [[thing.digit for thing in things] for things in (truth, said)]
    new_pair = any((thing.digit, thing.colour) in HELD_OUT for thing in truth)
    digits = tuple((true, mine) for true, mine in zip_longest(*names, fillvalue=NOTHING))
    return Judged(len(truth), new_pair, tuple(right), digits, (said, whence) == (truth, where))


def _in_order(caption: str) -> tuple[list[Thing], str | None]:
    """Things and their relation from left to right or from above to below; without a relation in the caption's own order."""
    things, relation = understand(" ".join(words(caption)))
    if relation in ("right of", "below") and len(things) == 2:
        return things[::-1], OPPOSITE[relation]
    return things, relation


def _attribute_metrics(judged: Sequence[Judged]) -> dict[str, float]:
    seen, new = [[each for each in judged if each.new_pair == wanted] for wanted in (False, True)]
    found = {f"{kind}_accuracy": _share_right(seen, kind) for kind in KINDS}
    found |= {"attribute_accuracy": _share_right(seen), "attribute_accuracy_new_pairs": _share_right(new)}
    found["attribute_accuracy_without_size"] = _share_right(seen, "digit", "colour", "relation")
    found |= {"exact_match": _mean([each.exact for each in seen]) if seen else None}
    return {name: value for name, value in found.items() if value is not None}


def _share_right(judged: Sequence[Judged], *kinds: str) -> float | None:
    """The share of attributes (of some kinds, or of all) that are right; None where there are none."""
    right = [one for each in judged for name, one in each.right if name in (kinds or KINDS)]
    return _mean(right) if right else None


def _rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row for each number of things and for pairs seen and not seen in training."""
    rows = []
    for num, new in sorted({(each.num_things, each.new_pair) for each in judged}):
        mine = [each for each in judged if (each.num_things, each.new_pair) == (num, new)]
        row = {"things": num, "pairs": "new" if new else "seen", "captions": len(mine)}
        row |= {"attribute_accuracy": _share_right(mine)} | {f"{kind}_accuracy": _share_right(mine, kind) for kind in KINDS}
        rows.append({**row, "exact_match": _mean([each.exact for each in mine])})
    return rows


def _lengths(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Chart:
    lengths = {
        "generated": [len(words(one)) for one in captions],
        "references": [len(words(one)) for each in references for one in each],
    }
    most = max((length for each in lengths.values() for length in each), default=0)
    grid = list(range(most + 1))
    lines = {
        name: (grid, (np.bincount(np.array(each, int), minlength=most + 1) / max(len(each), 1)).round(4).tolist())
        for name, each in lengths.items()
    }
    return Chart("Length of captions", "lines", "words", "share of captions", lines=lines)


def _terms(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Chart:
    sides = {"generated": rates(captions), "references": rates([one for each in references for one in each])}
    lines = {name: (range(len(side)), list(side.values())) for name, side in sides.items()}
    labels = [group.replace("_", " ") for group in groups()]
    return Chart("Captions with protected terms", "bars", "group of terms", "share of captions", lines=lines, labels=labels)


def _digit_charts(judged: Sequence[Judged]) -> list[Chart]:
    """How often each digit is right, and which is taken for which; none without embedded scenes."""
    if not judged:
        return []
    labels = [*DIGITS, NOTHING]
    counts = np.zeros((len(labels), len(labels)), int)
    lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for name, new in (("pairs seen in training", False), ("new pairs", True)):
        mine = np.zeros_like(counts)
        for true, said in (pair for each in judged if each.new_pair == new for pair in each.digits):
            mine[labels.index(true), labels.index(said)] += 1
        counts += mine
        if mine.any():
            shares = np.diag(mine)[:-1] / np.maximum(mine.sum(1)[:-1], 1)
            lines[name] = (range(len(DIGITS)), shares.round(4).tolist())
    return [
        Chart("Accuracy by digit", "bars", "true digit", "share right", lines=lines, labels=DIGITS),
        Chart("Digits, true and said", "matrix", "predicted digit", "true digit", matrix=counts.tolist(), labels=labels),
    ]


def meanings() -> Mapping[str, str]:
    """What each metric and each column of the table means, in a sentence."""
    text = "(captions in lower case without punctuation)"
    best = "F-measure against the nearest reference, mean over captions, 0 to 1"
    pairs = "of scenes whose pairs of digit and colour captions of train name"
    return {
        "cider": f"CIDEr-D {text}: likeness to the references in n-grams that few other pictures' have, mean over captions;"
        " 0 to 10, and 10 is out of reach where captions have under four words or references differ.",
        "cider_of_the_next": "CIDEr-D of each caption beside the references of the next picture of the split: what captions that do"
        " not depend on the picture reach.",
        "bleu4": f"BLEU {text}: n-grams of 1 to 4 words that some reference has, over the whole split, unsmoothed; 0 to 1.",
        "rouge1": f"ROUGE-1 {text}: words shared; {best}.",
        "rouge2": f"ROUGE-2 {text}: pairs of words shared; {best}.",
        "rougeL": f"ROUGE-L {text}: longest common sequence of words; {best}.",
        "rougeLsum": f"ROUGE-Lsum {text}: longest common sequences sentence by sentence; {best}.",
        "meteor_exact_stem": f"METEOR {text} by NLTK (parameters 0.9, 3, 0.5) with exact matches and matches of Porter stems"
        " alone: synonyms do not count, so it is lower than a METEOR with WordNet and not to be compared with one; best"
        " reference, mean over captions, 0 to 1.",
        "mean_words": "Words a generated caption.",
        "distinct_1": "Different words as a share of all words of the generated captions.",
        "distinct_2": "Different pairs of neighbouring words as a share of all pairs of the generated captions.",
        "ended": "Share of captions that the model ended itself, before the limit.",
        **{
            f"{group}_terms": f"Share of generated captions with a word that tells {group.replace('_', ' ')} (terms.yaml)."
            for group in groups()
        },
        "attribute_accuracy": "Share of a scene's attributes (of each thing digit, colour and whether it is small; of two"
        f" things the relation) that the caption gets right, {pairs}; things are compared from left to right or from above"
        " to below. All count alike, so it hides how often digits are right: see digit_accuracy.",
        "attribute_accuracy_without_size": "As attribute_accuracy, without size, which of a thing's attributes is right most often.",
        "attribute_accuracy_new_pairs": "As attribute_accuracy, of scenes with a pair of digit and colour that no caption of train"
        " names. A base language model made on the spot has read texts that do name such pairs, and its encoder has seen them:"
        " what is new is to say them of a picture.",
        "digit_accuracy": f"Share of digits that are right, {pairs}.",
        "colour_accuracy": f"Share of colours that are right, {pairs}.",
        "size_accuracy": f"Share of things rightly called small or not, {pairs}.",
        "relation_accuracy": f"Share of scenes with two things whose relation is right, {pairs}: side by side or one above"
        " the other; a caption that swaps the two things has a right relation and wrong things.",
        "exact_match": f"Share of captions that say all of the scene and nothing else, in any phrasing, {pairs}.",
        "things": "Things in the scene.",
        "pairs": "Whether captions of train name the scene's pairs of digit and colour (seen), or not all of them (new).",
        "captions": "Captions that were scored.",
    }


def _mean(values: Any) -> float:
    """The mean, 0 where there is nothing."""
    return float(np.mean(values)) if len(values) else 0.0
