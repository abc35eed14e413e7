"""FSDP2: parameters, gradients and optimiser state in pieces on the ranks; a layer's weights are gathered when it runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.backends.sharded import Sharded
from engine.backends.single import PRECISIONS, is_shaped
from engine.layers import layers
from engine.parts import Part


class Fsdp(Sharded):
    """Differs from `Sharded` in that torch's `fully_shard` divides the parameters by their first dimension."""

    def wrap(self, objective: nn.Module) -> Any:
        super().wrap(objective)
        how: dict[str, Any] = {"mesh": init_device_mesh(self.device.type, (self.ranks,)), "mp_policy": self._precision()}
        if self.plan.offload != "none":
            how["offload_policy"] = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        for layer in layers(objective):
            fully_shard(layer, **how)
        return fully_shard(objective, **how)

    def _precision(self) -> MixedPrecisionPolicy:
        """Weights travel in the plan's precision, gradients are added in fp32."""
        half = PRECISIONS.get(self.plan.precision)
        return MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
        )

    def accumulate(self, *, meet: bool) -> AbstractContextManager[Any]:
        self.forward.set_requires_gradient_sync(meet)
        return nullcontext()

    def norm(self, value: torch.Tensor) -> float:
        return float(value.full_tensor()) if isinstance(value, DTensor) else float(value)

    def part(self, tensor: torch.Tensor) -> Part:
        if not isinstance(tensor, DTensor):
            return super().part(tensor)
        rows, local = tensor.shape[0], tensor.to_local().detach()
        first = min(self.rank * -(-rows // self.ranks), rows)  # as torch.chunk cuts
        return Part(local, tensor.shape, first * tensor.shape[1:].numel(), divided=True)

    def divided(self, key: str, value: Any, parameter: nn.Parameter) -> Any:
        if not (is_shaped(key, value, parameter) and isinstance(parameter, DTensor)):
            return super().divided(key, value, parameter)
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(value.to(mesh.device_type), mesh, placements, src_data_rank=None)
