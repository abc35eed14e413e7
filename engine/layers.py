"""The repeated layers that a model is made of: what sharding and recomputing work on, one at a time."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from engine.normalization import statistics_paused


def layers(objective: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists and sequences of modules (an encoder's blocks, a network's stages) that train."""
    found: list[nn.Module] = []
    for child in objective.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            found += [member for member in child if any(value.requires_grad for value in member.parameters())]
        else:
            found += layers(child)
    return found


def recompute_activations(objective: nn.Module) -> None:
    """Let every layer forget its activations in the forward and compute them again in the backward, in place."""
    for layer in layers(objective):
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Any, *arguments: Any, **keywords: Any) -> Any:
    # What a layer counts, it counts once: batch statistics stand still the second time.
    contexts = lambda: (nullcontext(), statistics_paused())  # noqa: E731
    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **keywords)
