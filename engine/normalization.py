"""Batch normalisation that does not depend on how a batch is divided: statistics over ghost batches of a set size.

Source: Hoffer et al. 2017, "Train longer, generalize better", arXiv 1705.08741, there called ghost batch normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from contracts.errors import SlipwayError

_paused = False


@contextmanager
def statistics_paused() -> Iterator[None]:
    """Inside, layers normalise as in training but note no statistics: the same batch passes a second time."""
    global _paused
    before, _paused = _paused, True
    try:
        yield
    finally:
        _paused = before


class _Ghost:
    """What a batch-norm layer does in training: normalise every ghost batch alone and average their statistics."""

    ghost_batch: int
    num_ghosts: int
    ghost_mean: torch.Tensor
    ghost_variance: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:  # pyright: ignore[reportAttributeAccessIssue]
            return super().forward(input)  # pyright: ignore[reportAttributeAccessIssue]
        if len(input) <= self.ghost_batch:
            return self._normalized(input)
        return torch.cat([self._normalized(part) for part in input.split(self.ghost_batch)])

    def _normalized(self, part: torch.Tensor) -> torch.Tensor:
        # A momentum of 1/n makes torch's running statistics the plain mean over the n ghost batches so far.
        self.num_ghosts += not _paused
        return functional.batch_norm(
            part,
            self.ghost_mean,
            self.ghost_variance,
            _as(self.weight, self.ghost_mean.dtype),  # pyright: ignore[reportAttributeAccessIssue]
            _as(self.bias, self.ghost_mean.dtype),  # pyright: ignore[reportAttributeAccessIssue]
            training=True,
            momentum=0.0 if _paused else 1 / self.num_ghosts,
            eps=self.eps,  # pyright: ignore[reportAttributeAccessIssue]
        )


def _as(weight: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """In the statistics' type: sharding may have sent it in half precision."""
    return weight.to(dtype) if weight is not None else None


class GhostBatchNorm1d(_Ghost, nn.BatchNorm1d):
    """See the module."""


class GhostBatchNorm2d(_Ghost, nn.BatchNorm2d):
    """See the module."""


class GhostBatchNorm3d(_Ghost, nn.BatchNorm3d):
    """See the module."""


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


class GhostStatistics:
    """The running statistics of all batch-norm layers of a module, moved once a step for all ranks alike."""

    def __init__(self, objective: nn.Module, *, ghost_batch: int, num_ghosts: int) -> None:
        """Turn the layers of `objective` into ghost ones, in place; `num_ghosts` make one global batch."""
        found: list[Any] = [module for module in objective.modules() if type(module) in KINDS and module.track_running_stats]
        if found and ghost_batch < 2:
            raise SlipwayError("this model has batch-norm layers: train.ghost_batch must be 2 or more (8 to 32 is usual)")
        self.layers = found
        self.num_ghosts = num_ghosts
        self.momenta = [layer.momentum if layer.momentum is not None else 0.1 for layer in found for _ in range(2)]
        for layer in found:
            layer.__class__ = KINDS[type(layer)]
            layer.ghost_batch, layer.num_ghosts = ghost_batch, 0
            layer.ghost_mean = torch.zeros_like(layer.running_mean)
            layer.ghost_variance = torch.zeros_like(layer.running_var)

    def seen(self) -> torch.Tensor:
        """Means and variances of every layer on this rank in this step, in one row."""
        parts = [part for layer in self.layers for part in (layer.ghost_mean, layer.ghost_variance)]
        return torch.cat(parts) if parts else torch.zeros(0)

    def update(self, seen: torch.Tensor) -> None:
        """Move the running statistics by what all ranks have `seen`, averaged over them.

        One step counts as many moves with the layer's momentum as there were ghost batches in it.
        """
        running = [part for layer in self.layers for part in (layer.running_mean, layer.running_var)]
        values = seen.split([len(part) for part in running])
        for momentum in dict.fromkeys(self.momenta):
            chosen = [place for place, one in enumerate(self.momenta) if one == momentum]
            targets, towards = ([parts[place] for place in chosen] for parts in (running, values))
            torch._foreach_lerp_(targets, towards, 1 - (1 - momentum) ** self.num_ghosts)  # pyright: ignore[reportPrivateImportUsage]
        if self.layers:
            torch._foreach_add_([layer.num_batches_tracked for layer in self.layers], 1)  # pyright: ignore[reportPrivateImportUsage]
        self.forget()

    def forget(self) -> None:
        """Drop what the step has seen so far."""
        for layer in self.layers:
            layer.num_ghosts = 0


def fold(objective: nn.Module, replicas: Sequence[nn.Module]) -> None:
    """Take the batch statistics that copies of `objective` have seen in this step into its own."""
    for layer, *others in zip(*([*one.modules()] for one in (objective, *replicas)), strict=True):
        if isinstance(layer, _Ghost):
            _fold_layer(layer, [other for other in others if isinstance(other, _Ghost)])


def forget(objective: nn.Module) -> None:
    """Drop what a copy has seen in a step that is done again."""
    for layer in objective.modules():
        if isinstance(layer, _Ghost):
            layer.num_ghosts = 0


def _fold_layer(layer: _Ghost, others: Sequence[_Ghost]) -> None:
    for other in others:
        layer.num_ghosts += other.num_ghosts
        if other.num_ghosts:
            share = other.num_ghosts / layer.num_ghosts
            layer.ghost_mean.lerp_(other.ghost_mean.to(layer.ghost_mean.device), share)
            layer.ghost_variance.lerp_(other.ghost_variance.to(layer.ghost_mean.device), share)
        other.num_ghosts = 0
