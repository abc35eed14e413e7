"""One process, one device: the base case, from which every other backend differs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from contracts.plan import Plan

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Single:
    """Owns the device, the wrapped objective, the optimiser and what has to be said to other ranks (here: nothing)."""

    rank, ranks = 0, 1

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        self.scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")

    def prepare(self, objective: nn.Module, make_optimizer: MakeOptimizer, clip_norm: float | None) -> None:
        """Take over an objective (on any device) and make its optimiser."""
        self.objective = objective.to(self.device)
        self.forward = self.wrap(self.objective)
        self.optimizer = make_optimizer(self.objective)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        self.clip_norm = clip_norm

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The module to call in training."""
        return objective

    def accumulate(self, *, last: bool) -> AbstractContextManager[Any]:
        """Round the forward and backward of one micro-batch; gradients meet only after the last one of a step."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """Round a forward: the plan's precision."""
        if self.plan.precision not in PRECISIONS:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.plan.precision])

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, *, rate: float, scale: float) -> float:
        """One optimiser step with learning rates times `rate` and gradients times `scale`; gives the gradients' norm."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * rate
        self.scaler.unscale_(self.optimizer)
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        if scale != 1:
            torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, the same on each."""
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks, the same on each."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """What every rank holds, in rank order, on rank 0; None elsewhere."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """What rank 0 holds, on every rank."""
        return value

    def state(self) -> dict[str, Any]:
        """Weights, optimiser and scaler, complete on rank 0, with the names of the plain objective."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        """Leave the process group, if there is one."""
