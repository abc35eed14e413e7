"""The pieces of a tensor that a rank holds: what makes the same checkpoint fit every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Part:
    """This rank's piece of a tensor of `shape`: the elements from `start` on of the flattened whole.

    `piece` is the living memory: writing to it changes what trains. It may be empty. `divided` says that the ranks hold
    different pieces; otherwise each holds the whole.
    """

    piece: torch.Tensor
    shape: torch.Size
    start: int = 0
    divided: bool = False

    @classmethod
    def entire(cls, tensor: torch.Tensor) -> Part:
        """The whole tensor, all on this rank."""
        return cls(tensor.detach(), tensor.shape)

    def like(self, piece: torch.Tensor) -> Part:
        """Another tensor's piece in the same place."""
        return replace(self, piece=piece)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """What of `whole` lies here, shaped as the piece, as a view of `whole` where that is possible."""
        return whole.reshape(-1)[self.start : self.start + self.piece.numel()].view(self.piece.shape)

    @torch.no_grad()
    def take(self, whole: torch.Tensor) -> None:
        """Overwrite the piece with what of `whole` lies here."""
        self.piece.copy_(self.cut(whole))


def what_trains(objective: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name; one that has two names comes under its first."""
    return {name: value for name, value in objective.named_parameters() if value.requires_grad}


def buffers(objective: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that are part of the objective's state (batch statistics, say), by name."""
    kept = objective.state_dict(keep_vars=True).keys()
    return {name: value for name, value in objective.named_buffers() if name in kept}


def put(parts: Mapping[str, Part], whole: Mapping[str, torch.Tensor], *, what: str) -> None:
    """Overwrite every part with its place in the whole tensor of the same name.

    Raises:
        ValueError: when names or shapes differ, with the first of them.
    """
    for name in parts.keys() ^ whole.keys():
        raise ValueError(f"{what}: {name} is {'missing' if name in parts else 'unknown here'}")
    for name, part in parts.items():
        if part.shape != whole[name].shape:
            raise ValueError(f"{what}: {name} has the shape {list(whole[name].shape)}, here it is {list(part.shape)}")
        part.take(whole[name])


def load_weights(objective: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load what trained into a whole objective; frozen parameters, which a checkpoint leaves out, stay as they are.

    Raises:
        ValueError: when a name is unknown, or a missing one is not of a frozen parameter.
    """
    missing, unknown = objective.load_state_dict(dict(weights), strict=False)
    twins = dict(objective.named_parameters(remove_duplicate=False))
    given = {id(twins[name]) for name in weights if name in twins}
    lost = [name for name in missing if name not in twins or (twins[name].requires_grad and id(twins[name]) not in given)]
    if unknown or lost:
        raise ValueError(f"weights do not fit: unknown {unknown[:3]}, missing {lost[:3]}")


def named_state(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> dict[str, dict[str, Any]]:
    """An optimiser's state by the names of its parameters."""
    return {names[value]: dict(state) for value, state in optimizer.state.items()}
