"""Captions as tokens and back, by the tokenizer that travels in the facts; transformers is not needed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# A label that is none: padding.
IGNORED = -100


class Words:
    """A tokenizer in its library's own JSON, and `end`, the token that ends a caption."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(described["json"])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
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
