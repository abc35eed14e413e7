"""Captions as tokens and back, by the tokenizer that travels in the facts; transformers is not needed for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

import numpy as np

# A label that is none: padding.
IGNORED = -100
# Captions that are counted at once.
BATCH = 10_000


class Words:
    """A tokenizer in its library's own JSON, and `end`, the token that ends a caption."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self._tokenizer = _opened(described["json"])
        self.end: int = described["end"]

    def ids(self, caption: str, *, longest: int) -> list[int]:
        """The caption's tokens with the end, or its first `longest` without one: where it is cut it does not end."""
        return [*self._tokenizer.encode(caption, add_special_tokens=False).ids, self.end][:longest]

    def lengths(self, captions: Sequence[str], *, longest: int | None = None) -> np.ndarray:
        """How many tokens `ids` gives for each, or would give if none were too long."""
        found = self._tokenizer.encode_batch_fast(list(captions), add_special_tokens=False)
        counts = np.array([len(one) + 1 for one in found], int)
        return counts if longest is None else np.minimum(counts, longest)

    def counted(self, captions: Sequence[str]) -> dict[str, int]:
        """How many captions have so many tokens, with the one that ends them, from the shortest to the longest."""
        parts = (self.lengths(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH))
        counts = Counter(length for part in parts for length in part.tolist())
        return {str(length): counts[length] for length in sorted(counts)}

    def text(self, ids: Sequence[int]) -> str:
        """The words of tokens, without special ones."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def cut(counted: Mapping[str, int], *, longest: int) -> str | None:
    """What a user must know of whose captions (as `Words.counted` has them) some are too long; None where none is."""
    total, whole = sum(counted.values()), sum(num for length, num in counted.items() if int(length) <= longest)
    if whole == total:
        return None
    return (
        f"{(total - whole) / total:.1%} of the captions of train that were counted ({total - whole:,} of {total:,}) have more than {longest} tokens and are cut"
        f" there: their rest is not learnt, and no end of theirs. captioning.train.longest: {max(map(int, counted))} takes them whole."
    )


@lru_cache(maxsize=2)
def _opened(described: str) -> Tokenizer:
    """The tokenizer of that JSON. Opening a large one takes longer than a caption does."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(described)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
