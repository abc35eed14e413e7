"""One process, one device: the base case, from which every other backend differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from contracts.plan import Plan
from engine.layers import recompute_activations
from engine.parts import Part, buffers, named_state, put, what_trains

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Single:
    """Owns the device, the wrapped objective, the optimiser and what has to be said to other ranks (here: nothing).

    `divides` says whether gradients may meet after the backward instead of in it: only then can all ranks agree that one of
    them ran out of memory, and do the step again with smaller micro-batches. `apart` says that they do so in every step, not
    only in the first: on CPUs, where it costs nothing, and where a parameter was seen to get no gradient from a batch.
    """

    rank, ranks = 0, 1
    divides = True

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        self.apart = plan.device == "cpu"
        self.scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")

    def prepare(self, objective: nn.Module, make_optimizer: MakeOptimizer, clip_norm: float | None) -> None:
        """Take over an objective (on any device) and make its optimiser."""
        self.objective, self.clip_norm = objective, clip_norm
        if self.plan.activation_checkpointing:
            recompute_activations(objective)
        self.forward = self.wrap(objective)
        if self.plan.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = self.optimize(make_optimizer)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [value for group in self.optimizer.param_groups for value in group["params"]]

    def wrap(self, objective: nn.Module) -> Any:
        """What to call in training."""
        return objective.to(self.device)

    def optimize(self, make_optimizer: MakeOptimizer) -> torch.optim.Optimizer:
        """The optimiser of what `wrap` made of the objective."""
        return make_optimizer(self.objective)

    def accumulate(self, *, meet: bool) -> AbstractContextManager[Any]:
        """Round the forward and backward of one micro-batch; with `meet`, gradients of all ranks are averaged in it."""
        return nullcontext()

    def meets_in(self, phase: str, *, meet: bool) -> bool:
        """Whether ranks wait for each other inside a phase ("forward", "backward", "optimizer") of a micro-batch."""
        return False

    def autocast(self) -> AbstractContextManager[Any]:
        """Round a forward: the plan's precision."""
        if self.plan.precision not in PRECISIONS:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.plan.precision])

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def lacks_gradients(self) -> bool:
        """Whether gradients that are to meet in the backward could not, for one that is not there."""
        return False

    def collect(self) -> None:
        """Bring together what the devices of this process have computed for a step."""

    def exchange(self, numbers: torch.Tensor, *, gradients: bool) -> Callable[[], torch.Tensor]:
        """Send `numbers` [n] to the other ranks. What comes back is called to wait for the sum over all of them.

        `gradients`, where no backward has done it, travel in the same message; after the wait they are the mean over the ranks.
        """
        return lambda: self.sum(numbers)

    def step(self, *, rate: float, scale: float) -> float:
        """One optimiser step with learning rates times `rate`, on the sum of all ranks' gradients times `scale`.

        Gives the norm of that gradient.
        """
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * rate
        self.scaler.unscale_(self.optimizer)
        gradients = self.gradients()
        if scale * self.ranks != 1:  # gradients were averaged over the ranks; their sum is meant
            torch._foreach_mul_(gradients, scale * self.ranks)  # pyright: ignore[reportPrivateImportUsage]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            torch._foreach_mul_(gradients, (self.clip_norm / (norm + 1e-6)).clamp(max=1))  # pyright: ignore[reportPrivateImportUsage]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget()
        return self.norm(norm)

    def gradients(self) -> list[torch.Tensor]:
        """All gradients of this process, each element once."""
        return [value.grad for value in self.parameters if value.grad is not None]

    def norm(self, value: torch.Tensor) -> float:
        """A gradient's norm as a number."""
        return float(value)

    def forget(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def any(self, value: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.sum(torch.tensor(float(value), device=self.device)))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, the same on each."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """What every rank holds, in rank order, on rank 0; None elsewhere."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """What rank 0 holds, on every rank."""
        return value

    def part(self, tensor: torch.Tensor) -> Part:
        """This rank's piece of a parameter, a buffer or a tensor of the optimiser that is shaped like a parameter."""
        return Part.entire(tensor)

    def weights(self) -> dict[str, Part]:
        """What trains, in fp32, and the buffers: this rank's living pieces by their names in the plain objective."""
        tensors = {**what_trains(self.objective), **buffers(self.objective)}
        return {name: self.part(value) for name, value in tensors.items()}

    def whole(self, parts: Mapping[str, Part]) -> dict[str, torch.Tensor]:
        """The whole tensors, on every rank (not copied where this rank's piece is all of it)."""
        return {name: part.piece.view(part.shape) for name, part in parts.items()}

    def state(self) -> dict[str, Any]:
        """Weights, optimiser and scaler, whole, by the names of the plain objective: the same whatever the backend."""
        return {
            "weights": self.whole(self.weights()),
            "optimizer": self.moments(),
            "scaler": self.scaler.state_dict(),
        }

    def moments(self) -> dict[str, dict[str, Any]]:
        """The optimiser's state of each parameter, whole."""
        trained = what_trains(self.objective)
        states = named_state(self.optimizer, {value: name for name, value in trained.items()})
        return {name: self._whole_state(trained[name], state) for name, state in states.items()}

    def _whole_state(self, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Any]:
        shaped = {key: value for key, value in state.items() if is_shaped(key, value, parameter)}
        return {**state, **self.whole({key: self.part(value) for key, value in shaped.items()})}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that any backend gave.

        Raises:
            ValueError: when it is of another model.
        """
        put(self.weights(), state["weights"], what="the checkpoint's weights")
        self.load_moments(state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def load_moments(self, moments: Mapping[str, Mapping[str, Any]]) -> None:
        names = {value: name for name, value in what_trains(self.objective).items()}
        plain = self.optimizer.state_dict()
        plain["state"] = {
            index: {key: self.divided(key, value, parameter) for key, value in moments[names[parameter]].items()}
            for index, parameter in enumerate(self.parameters)
            if names[parameter] in moments
        }
        self.optimizer.load_state_dict(plain)

    def divided(self, key: str, value: Any, parameter: nn.Parameter) -> Any:
        """A value of the optimiser's state as this rank keeps it (a copy)."""
        return value.clone() if isinstance(value, torch.Tensor) else value

    def close(self) -> None:
        """Leave the process group, if there is one."""


def is_shaped(key: str, value: Any, parameter: nn.Parameter) -> bool:
    """Whether a value of the optimiser's state is one for each element of the parameter."""
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape and key != "step"
