"""Dropout that does not depend on how a batch is divided: every sample has masks of its own, whoever computes it, in whatever company.

Whether an element is dropped is a hash of its sample's draw, its layer and its place in the sample. So it needs no generator whose state
would depend on what was drawn before, and padding at a sample's end changes nothing of what stands before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from engine.randomness import key
from engine.stream import Sample

# Shifts and factors of a 32-bit hash without visible bias. Source: C. Wellons, "hash-prospector", github.com/skeeto/hash-prospector
ROUNDS = ((16, 0x21F0AAAD), (15, 0x735A2D97))
APART = 0x61C88647  # neighbouring places lie this far from each other: 2**32 / golden ratio, as a signed number
HALF = 2**31


class SampleDropout:
    """The dropout layers of a module, turned into ones whose masks belong to samples."""

    def __init__(self, objective: nn.Module, *, seed: int) -> None:
        """Change the layers of `objective` in place. Others that drop (attention kernels, channels as a whole) stay as they are."""
        self.seed = seed
        self.draws: torch.Tensor | None = None
        dropping = [(name, one) for name, one in objective.named_modules() if type(one) is nn.Dropout]
        self.layers: list[tuple[str, Any]] = [(name, one) for name, one in dropping if 0 < one.p < 1]
        for name, keyed in self.layers:
            keyed.__class__, keyed.samples, keyed.own = KeyedDropout, self, _signed(key("dropout", name))

    def meet(self, samples: Iterable[Sample], device: torch.device) -> None:
        """The next forward is of these samples, in this order."""
        if self.layers:
            draws = [_signed(key(self.seed, "dropout", sample.draw, sample.index)) for sample in samples]
            self.draws = torch.tensor(draws, dtype=torch.int32, device=device)

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleDropout:
        """A copy of the module, for another device, asks the same one."""
        return self


class KeyedDropout(nn.Dropout):
    """Input [B, ...] of a multiple of the samples, each with as many rows in a row; other inputs are dropped from as in torch.

    A layer that is called more than once in a forward drops the same each time.
    """

    samples: SampleDropout
    own: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        draws = self.samples.draws
        if not self.training or draws is None or input.ndim < 2 or len(input) % len(draws):
            return super().forward(input)
        return input * self._kept(draws.to(input.device), input).to(input.dtype).div_(1 - self.p)

    @torch.no_grad()
    def _kept(self, draws: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        """Which elements stay, a boolean of the input's shape."""
        width = input.shape[-1]
        places = torch.arange(input.numel() // len(draws) // width, dtype=torch.int32, device=input.device)
        columns = torch.arange(width, dtype=torch.int32, device=input.device)
        rows = _hashed(_hashed(draws + self.own)[:, None] + places * APART)
        values = _hashed(rows[..., None] ^ _hashed(columns * APART + self.own))
        return (values >= round(self.p * 2 * HALF) - HALF).view(input.shape)


def _hashed(values: torch.Tensor) -> torch.Tensor:
    """int32 to int32, each bit depending on all bits; overwrites what it is given."""
    for shift, factor in ROUNDS:
        values ^= (values >> shift).bitwise_and_((1 << (32 - shift)) - 1)
        values *= factor
    return values.bitwise_xor_((values >> 15).bitwise_and_((1 << 17) - 1))


def _signed(number: int) -> int:
    """As a 32-bit number with a sign."""
    return number % (2 * HALF) - HALF
