"""One process a device, all with the whole model: gradients meet in all-reduce (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import datetime
import inspect
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contracts.plan import Plan
from engine.backends.single import Single
from engine.planning import process_group

TIMEOUT = datetime.timedelta(minutes=10)
# Newer versions of torch have another name for the option.
BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class Ddp(Single):
    """Differs from `Single` in how gradients and numbers meet."""

    def __init__(self, plan: Plan) -> None:
        local = int(os.environ["LOCAL_RANK"])
        if plan.device == "cuda":
            torch.cuda.set_device(local)
        dist.init_process_group(process_group(plan.device, platform.system()), timeout=TIMEOUT)
        super().__init__(plan)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if plan.device == "cuda":
            self.device = torch.device("cuda", local)

    def wrap(self, objective: nn.Module) -> nn.Module:
        # Buffers are kept equal by GhostStatistics; broadcasting them too would be work for nothing.
        options: dict[str, Any] = {BUFFERS: False, "gradient_as_bucket_view": True}
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=devices, **options)

    def accumulate(self, *, last: bool) -> AbstractContextManager[Any]:
        assert isinstance(self.forward, DistributedDataParallel)
        return nullcontext() if last else self.forward.no_sync()

    def step(self, *, rate: float, scale: float) -> float:
        # DDP has averaged the gradients over the ranks; the sum is what `scale` speaks of.
        return super().step(rate=rate, scale=scale * self.ranks)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        total = values.to(self.device)
        dist.all_reduce(total)
        return total

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return self.sum(values) / self.ranks

    def gather(self, value: Any) -> list[Any] | None:
        gathered: list[Any] | None = [None] * self.ranks if self.rank == 0 else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        dist.destroy_process_group()
