"""CIDEr-D: how much a caption says of what its picture's references say and other pictures' do not.

Vedantam, Zitnick, Parikh 2015, arXiv 1411.5726, section 5, with the numbers of the authors' code: n-grams of 1 to 4 words, a
Gaussian penalty on the difference in length with a deviation of 6 words, and a scale of 10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST, DEVIATION, SCALE = 4, 6.0, 10.0
Words = Sequence[str]
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Weighed:
    """A caption as weights of its n-grams, a dictionary for each n with its norm, and its length in words."""

    weights: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    length: int


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> NDArray[np.float64]:
    """The score of each caption, 0 to 10 [n]; `references` are the captions of its picture, one or more each.

    How telling an n-gram is, is learnt from the references: one that every picture has counts nothing. With one picture
    everything is such, and the score is 0.
    """
    pictures = Counter(gram for each in references for gram in {gram for one in each for gram in _grams(one)})
    most = np.log(max(len(references), 1))
    telling = {gram: float(most - np.log(count)) for gram, count in pictures.items()}
    scores = np.zeros(len(captions))
    for index, (caption, each) in enumerate(zip(captions, references, strict=True)):
        mine = _weighed(caption, telling, unseen=float(most))
        likenesses = [_likeness(mine, _weighed(one, telling, unseen=float(most))) for one in each]
        scores[index] = SCALE * np.mean(likenesses)
    return scores


def _grams(words: Words) -> Counter[Gram]:
    return Counter(
        tuple(words[start : start + size]) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1)
    )


def _weighed(words: Words, telling: dict[Gram, float], *, unseen: float) -> Weighed:
    """Weights are counts times how telling the n-gram is; one that no reference has is as telling as can be."""
    weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(LONGEST))
    for gram, count in _grams(words).items():
        weights[len(gram) - 1][gram] = count * telling.get(gram, unseen)
    return Weighed(weights, tuple(float(np.linalg.norm(list(each.values()))) for each in weights), len(words))


def _likeness(mine: Weighed, reference: Weighed) -> float:
    """The mean over n of the cosine, in which saying a thing more often than the reference gains nothing; 0 to 1."""
    cosines = []
    for size in range(LONGEST):
        own, theirs, norms = mine.weights[size], reference.weights[size], mine.norms[size] * reference.norms[size]
        shared = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in own.items() if gram in theirs)
        cosines.append(shared / norms if norms else 0.0)
    penalty = np.exp(-((mine.length - reference.length) ** 2) / (2 * DEVIATION**2))
    return float(np.mean(cosines) * penalty)
