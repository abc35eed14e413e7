"""DeepSpeed's ZeRO, stages 1 to 3: optimiser state, gradients and parameters in pieces on the ranks, or in the CPU's memory.

Its reduction and its optimiser wrapper do the work; weights and state are read from, and written to, their flat pieces, so
that a checkpoint is the same as everybody else's.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from contracts.plan import Plan
from engine.backends.ddp import TIMEOUT
from engine.backends.sharded import Sharded
from engine.backends.single import MakeOptimizer
from engine.deepspeed_config import deepspeed_config
from engine.parts import Part, buffers, what_trains
from engine.planning import process_group


@dataclass(frozen=True)
class Place:
    """Where this rank's piece of a parameter lies: `count` elements from `offset` of the group `group`'s flat tensor.

    They are the elements from `start` on of the flattened parameter.
    """

    group: int
    offset: int
    count: int
    start: int
    shape: torch.Size


class Deepspeed(Sharded):
    """Differs from `Sharded` in that DeepSpeed's engine runs the forward, the backward and the step."""

    def join(self, plan: Plan) -> None:
        if plan.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Otherwise its collectives for CPUs are compiled when they are first used.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        group = process_group(plan.device, platform.system())
        deepspeed.init_distributed(dist_backend=group, timeout=TIMEOUT, verbose=False)

    def optimize(self, make_optimizer: MakeOptimizer) -> torch.optim.Optimizer:
        import deepspeed

        config = deepspeed_config(self.plan, clip_norm=self.clip_norm)
        made: Any = deepspeed.initialize(model=self.objective, optimizer=make_optimizer(self.objective), config=config)
        self.forward, self.zero = made[:2]
        if self.plan.compile:
            self.forward.compile()
        return self.zero

    def accumulate(self, *, meet: bool) -> AbstractContextManager[Any]:
        self.forward.set_gradient_accumulation_boundary(meet)
        self.zero.override_loss_scale(1.0)
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # the engine's own, as its configuration says

    def backward(self, loss: torch.Tensor) -> None:
        self.forward.backward(loss, scale_wrt_gas=False)

    def step(self, *, rate: float, scale: float) -> float:
        for group, base in zip(self.zero.param_groups, self.base_rates, strict=True):
            group["lr"] = base * rate
        # Gradients are averaged over the ranks; what a loss scale divides by is how they become the sum times `scale`.
        self.zero.override_loss_scale(1 / (scale * self.ranks))
        self.forward.step()
        return float(self.forward.get_global_grad_norm() or 0.0)

    def forget(self) -> None:
        self.zero.zero_grad()

    def weights(self) -> dict[str, Part]:
        pieces = {name: self._part(place, self._flat(place.group)) for name, place in self._places().items()}
        return {**pieces, **{name: self.part(value) for name, value in buffers(self.objective).items()}}

    def moments(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name, place in self._places().items():
            flat = self._flat(place.group)
            state = self.zero.optimizer.state.get(flat, {})
            pieces = {key: self._part(place, value) for key, value in state.items() if _is_flat(value, flat)}
            found[name] = {**state, **self.whole(pieces)}
        return {name: state for name, state in found.items() if state}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        for name, parameter in what_trains(self.objective).items():  # the copies that the forward uses
            if hasattr(parameter, "ds_tensor"):
                place = self._places()[name]
                part = self._part(place, self._flat(place.group))
                parameter.ds_tensor.data.view(-1)[: place.count] = part.piece.to(parameter.ds_tensor.device)  # pyright: ignore
            else:
                parameter.data.copy_(state["weights"][name])

    def load_moments(self, moments: Mapping[str, Mapping[str, Any]]) -> None:
        places = self._places()
        states: dict[int, dict[str, Any]] = {}
        for name, state in moments.items():
            place = places[name]
            flat, group = self._flat(place.group), states.setdefault(place.group, {})
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == place.shape and key != "step":
                    group.setdefault(key, torch.zeros_like(flat))
                    self._part(place, group[key]).take(value)
                else:
                    group[key] = value.clone() if isinstance(value, torch.Tensor) else value
        for group, state in states.items():
            self.zero.optimizer.state[self._flat(group)] = state

    def _part(self, place: Place, flat: torch.Tensor) -> Part:
        piece = flat.detach()[place.offset : place.offset + place.count]
        return Part(piece, place.shape, place.start, divided=True)

    def _flat(self, group: int) -> torch.Tensor:
        """This rank's fp32 master weights of a group of parameters, as one flat tensor."""
        three = self.plan.zero_stage == 3
        return (self.zero.fp32_partitioned_groups_flat if three else self.zero.single_partition_of_fp32_groups)[group]

    def _places(self) -> dict[str, Place]:
        find = self._place_in_three if self.plan.zero_stage == 3 else self._place_in_one_or_two
        return {name: find(parameter) for name, parameter in what_trains(self.objective).items()}

    def _place_in_three(self, parameter: Any) -> Place:
        group, offset, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
        size = parameter.ds_tensor.ds_numel  # the same on every rank: the last piece is padded
        start = min(self.rank * size, parameter.ds_numel)
        return Place(group, offset, min(size, parameter.ds_numel - start), start, parameter.ds_shape)

    def _place_in_one_or_two(self, parameter: Any) -> Place:
        mapping = parameter._hp_mapping
        if mapping is None:  # all of it lies on other ranks
            return Place(self._group_of(parameter), 0, 0, 0, parameter.shape)
        there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Place(mapping.param_group_index, here.start, here.numel, there.start, parameter.shape)

    def _group_of(self, parameter: nn.Parameter) -> int:
        groups = self.zero.bit16_groups
        return next(index for index, group in enumerate(groups) if any(one is parameter for one in group))


def _is_flat(value: Any, flat: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == flat.shape
