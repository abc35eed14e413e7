"""What the backends share that keep only a piece of every weight on each rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from engine.backends.ddp import Ddp
from engine.backends.single import Single
from engine.beacon import collective
from engine.parts import Part


class Sharded(Ddp):
    """Differs from `Ddp` in that weights and the optimiser's state lie in pieces on the ranks.

    A rank that runs out of memory cannot step aside: gathering weights needs all of them. So the launcher starts the run
    again with smaller micro-batches.
    """

    divides = False

    def wrap(self, objective: nn.Module) -> Any:
        """The objective on the device, its weights in the plain order: in another (channels last) they cannot be cut."""
        objective.to(self.device)
        for value in objective.parameters():
            value.data = value.data.clone(memory_format=torch.contiguous_format)
        return objective

    def whole(self, parts: Mapping[str, Part]) -> dict[str, torch.Tensor]:
        return {name: self._joined(name, part) if part.divided else part.piece for name, part in parts.items()}

    def _joined(self, name: str, part: Part) -> torch.Tensor:
        """The whole tensor, on the CPU: every rank fills its own place, and the sum is the whole."""
        flat = torch.zeros(part.shape.numel(), dtype=part.piece.dtype, device=self.device)
        flat[part.start : part.start + part.piece.numel()] = part.piece.reshape(-1).to(self.device)
        with collective(f"gathering of {name}"):
            dist.all_reduce(flat)
        return flat.view(part.shape).cpu()

    def meets_in(self, phase: str, *, meet: bool) -> bool:
        return True

    def exchange(self, numbers: torch.Tensor, *, gradients: bool) -> Callable[[], torch.Tensor]:
        if gradients:
            raise AssertionError("gradients meet in the backward")
        return lambda: self.sum(numbers)

    def gradients(self) -> list[torch.Tensor]:
        """Each parameter's own piece: no rank has them all in one tensor."""
        return Single.gradients(self)
