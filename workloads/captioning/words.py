"""Captions as tokens and back, by the tokenizer that travels in the facts; transformers is not needed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

import numpy as np

# A label that is none: padding.
IGNORED = -100


class Words:
    """A tokenizer in its library's own JSON, and `end`, the token that ends a caption."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self._tokenizer = _opened(described["json"])
        self.end: int = described["end"]

    def ids(self, caption: str, *, longest: int) -> list[int]:
        """The caption's tokens, at most `longest` with the end, which is always there."""
        return [*self._tokenizer.encode(caption, add_special_tokens=False).ids[: longest - 1], self.end]

    def lengths(self, captions: Sequence[str], *, longest: int) -> np.ndarray:
        """How many tokens `ids` gives for each."""
        found = self._tokenizer.encode_batch_fast(list(captions), add_special_tokens=False)
        return np.minimum([len(one) + 1 for one in found], longest)

    def text(self, ids: Sequence[int]) -> str:
        """The words of tokens, without special ones."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()


@lru_cache(maxsize=2)
def _opened(described: str) -> Tokenizer:
    """The tokenizer of that JSON. Opening a large one takes longer than a caption does."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(described)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
