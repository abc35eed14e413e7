"""Sets of words that are nearly the same: every pair that overlaps enough, without comparing every pair."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction


def alike_pairs(sets: Sequence[frozenset[str]], least: Fraction) -> Iterator[tuple[int, int]]:
    """Every pair of sets, as positions, whose overlap (Jaccard: words shared over words of either) is `least` or more.

    Sets must differ and hold a word. Prefix and positional filtering (Bayardo et al. 2007, "Scaling up all pairs similarity
    search"; Xiao et al. 2008, "Efficient similarity joins for near duplicate detection"): sets that overlap so much share
    one of their few rarest words, and enough words come after it in both.
    """
    frequency = Counter(word for one in sets for word in one)
    rarest_first = {word: rank for rank, word in enumerate(sorted(frequency, key=lambda word: (frequency[word], word)))}
    share, whole = least.numerator, least.denominator
    # For each word those that have it among their rarest: the set, its size, and how many of its words are no rarer.
    holders: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number in sorted(range(len(sets)), key=lambda number: len(sets[number])):
        mine, size = sets[number], len(sets[number])
        needed = -(-share * size // whole)
        rare = sorted(rarest_first[word] for word in mine)[: size - needed + 1]
        candidates: set[int] = set()
        for place, rank in enumerate(rare):
            candidates.update(
                other
                for other, theirs, after in holders[rank]
                if theirs >= needed and min(size - place, after) * (share + whole) >= share * (size + theirs)
            )
        for other in candidates:
            shared = len(mine & sets[other])
            if shared * whole >= share * (size + len(sets[other]) - shared):
                yield other, number
        for place, rank in enumerate(rare):
            holders[rank].append((number, size, size - place))
