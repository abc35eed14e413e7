"""One process that drives several devices, a copy of the model on each: for where no process group can start, and quick tests.

What it costs: one Python interpreter feeds all devices in turn, and every step copies all gradients to the first device
and all weights back. Unlike `torch.nn.DataParallel` it keeps the copies, takes any batch (a micro-batch goes to one device
as it is) and combines the batch statistics of all of them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from contracts.plan import Plan
from engine.backends.single import Single
from engine.feeding import moved
from engine.normalization import fold, forget


class Dp(Single):
    """Differs from `Single` in that micro-batches take turns on `plan.replicas` devices."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        indices = range(plan.replicas)
        self.devices = [torch.device("cuda", index) if plan.device == "cuda" else self.device for index in indices]
        self.device = self.devices[0]

    def wrap(self, objective: nn.Module) -> Any:
        self._turn = 0
        self._models = [objective.to(self.device), *(copy.deepcopy(objective).to(one) for one in self.devices[1:])]
        return self._next

    def _next(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The output for a micro-batch, computed on the device whose turn it is."""
        place = self._turn % len(self._models)
        self._turn += 1
        output = self._models[place](moved(batch, self.devices[place]))
        return moved(output, self.device)

    def collect(self) -> None:
        copies = self._models[1:]
        for parameter, *others in zip(*(one.parameters() for one in self._models), strict=True):
            for other in others:
                if other.grad is not None:
                    gradient = other.grad.to(self.device)
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
                    other.grad = None
        fold(self.objective, copies)

    def step(self, *, rate: float, scale: float) -> float:
        norm = super().step(rate=rate, scale=scale)
        self._spread()
        return norm

    def forget(self) -> None:
        super().forget()
        self._turn = 0
        for one in self._models[1:]:
            one.zero_grad(set_to_none=True)
            forget(one)

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._spread()

    @torch.no_grad()
    def _spread(self) -> None:
        """Copy the weights to the other devices."""
        for parameter, *others in zip(*(one.parameters() for one in self._models), strict=True):
            for other in others:
                other.copy_(parameter, non_blocking=True)
