"""An exponential moving average of the weights: what is evaluated and shipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Average:
    """Averages every float tensor of a module's state; the decay grows to its full value over the first steps.

    With a decay of 0 the average is the weights themselves.
    """

    def __init__(self, objective: nn.Module, *, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self._live = dict(objective.state_dict())
        self.tensors = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 9)) if self.decay else 0.0
        moving = [name for name, value in self.tensors.items() if value.is_floating_point()]
        averages, live = ([tensors[name] for name in moving] for tensors in (self.tensors, self._live))
        torch._foreach_lerp_(averages, live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for name, value in self.tensors.items():
            if not value.is_floating_point():
                value.copy_(self._live[name])

    def state(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "tensors": self.tensors}

    def load_state(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        for name, value in state["tensors"].items():
            self.tensors[name].copy_(value)
