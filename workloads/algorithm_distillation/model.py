"""The causal transformer over moments: all at once in training, one at a time with a cache of keys and values in use."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from workloads.algorithm_distillation.environments.room import NUM_ACTIONS
from workloads.algorithm_distillation.settings import DistillationTrain
from workloads.algorithm_distillation.tokens import STEP


class Attention(nn.Module):
    """Self-attention over what came before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.inner = nn.Linear(width, 3 * width)
        self.outer = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, *, causal: bool = True) -> torch.Tensor:
        """hidden [B, L, width]; each position sees itself and those before, or all."""
        return self._attended(*self._split(hidden), causal=causal)

    def remembered(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, seeing what came before, and the keys and values, [B, 2, heads, L, size]."""
        queries, keys, values = self._split(hidden)
        return self._attended(queries, keys, values, causal=True), torch.stack([keys, values], dim=1)

    def step(
        self, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, there: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [B, 1, width], keys and values [B, heads, C, size] of which `there` [B, 1, 1, C] is filled.

        Gives the result and this position's own key and value, [B, 2, heads, size].
        """
        query, key, value = self._split(hidden)
        before = (query @ keys.transpose(-1, -2)).masked_fill(~there, -torch.inf)
        shares = (torch.cat([before, query @ key.transpose(-1, -2)], dim=-1) * self.size**-0.5).softmax(-1)
        found = shares[..., :-1] @ values + shares[..., -1:] * value
        return self.outer(found.transpose(1, 2).flatten(2)), torch.cat([key, value], dim=2).transpose(1, 2)

    def _attended(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, causal: bool) -> torch.Tensor:
        found = functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        return self.outer(found.transpose(1, 2).flatten(2))

    def _split(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, each [B, heads, L, size]."""
        whole = self.inner(hidden).unflatten(-1, (3, self.heads, self.size))
        return tuple(part.transpose(1, 2) for part in whole.unbind(2))


class Block(nn.Module):
    """Attention, then two layers on each position, both before a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: torch.Tensor, *, causal: bool = True) -> torch.Tensor:
        return self._after(hidden, self.attention(self.attention_norm(hidden), causal=causal))

    def remembered(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Attention.remembered`."""
        found, kept = self.attention.remembered(self.attention_norm(hidden))
        return self._after(hidden, found), kept

    def step(
        self, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, there: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Attention.step`."""
        found, fresh = self.attention.step(self.attention_norm(hidden), keys, values, there)
        return self._after(hidden, found), fresh

    def _after(self, hidden: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """What attention found, and the two layers, each added."""
        hidden = hidden + found
        return hidden + self.layers(self.norm(hidden))


class Compressor(nn.Module):
    """The latents before, and a window that has ended, to as many latents: what is to be known of all that was."""

    def __init__(self, settings: DistillationTrain) -> None:
        super().__init__()
        self.shape = (settings.latents, settings.width)
        self.places, self.questions = (nn.Parameter(0.02 * torch.randn(self.shape)) for _ in range(2))
        self.blocks = nn.ModuleList(Block(settings.width, settings.heads) for _ in range(settings.encoder_layers))
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, latents: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """latents [B, latents, width], zeros before the first window; window [B, L, width], embedded; gives latents."""
        questions = self.questions.expand(window.shape[0], -1, -1)
        hidden = torch.cat([latents + self.places, window, questions], dim=1)
        for block in self.blocks:
            hidden = block(hidden, causal=False)
        # As precise as what they will stand before: weights in half precision refuse others.
        return self.norm(hidden[:, -questions.shape[1] :]).to(window.dtype)


class Learner(nn.Module):
    """Tokens int [B, L, 7] to logits of the next action, [B, L, 5]. A token is the sum of its numbers' embeddings, which also
    say where in the history it stands. With a compressor, windows follow each other, each begun with the latents of all before:
    in training to the same depth as in use."""

    def __init__(self, vocabulary: Sequence[int], settings: DistillationTrain) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, settings.width) for size in vocabulary)
        self.blocks = nn.ModuleList(Block(settings.width, settings.heads) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, NUM_ACTIONS)
        self.window = (settings.window or 0) * vocabulary[STEP]
        self.compressor = Compressor(settings) if settings.window else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embedded(tokens)
        if self.compressor is None:
            return self.decoded(embedded)
        windows = embedded.split(self.window, dim=1)
        latents = embedded.new_zeros(len(tokens), *self.compressor.shape)
        found = [self.decoded(windows[0])]
        for before, window in pairwise(windows):
            latents = self.compressor(latents, before)
            found.append(self.decoded(torch.cat([latents, window], dim=1))[:, latents.shape[1] :])
        return torch.cat(found, dim=1)

    def decoded(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits at positions that see themselves and those before."""
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))

    def compress(self, latents: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """At the end of a window, tokens int [B, window, 7]: the latents, and their keys and values, with which the cache of
        the next window begins, [B, layers, 2, heads, latents, size]."""
        assert self.compressor is not None
        latents = self.compressor(latents, self.embedded(tokens))
        hidden, kept = latents, []
        for block in self.blocks:
            hidden, own = block.remembered(hidden)  # pyright: ignore[reportCallIssue]
            kept.append(own)
        return latents, torch.stack(kept, dim=1)

    def step(
        self, tokens: torch.Tensor, position: torch.Tensor, cache: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One moment: tokens int [B, 7], how many came before [B], and their keys and values, layer by layer [B, heads, C, size],
        of which what lies behind `position` is not looked at. Gives logits [B, 5] and what to put there, [B, layers, 2, heads, size]."""
        hidden = self.embedded(tokens)[:, None]
        there = (torch.arange(cache[0].shape[-2], device=tokens.device) < position[:, None])[:, None, None]
        fresh = []
        for number, block in enumerate(self.blocks):
            hidden, own = block.step(hidden, cache[2 * number], cache[2 * number + 1], there)  # pyright: ignore[reportCallIssue]
            fresh.append(own)
        return self.head(self.norm(hidden[:, 0])), torch.stack(fresh, dim=1)

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([table(tokens[..., place].long()) for place, table in enumerate(self.embeddings)]).sum(0)
