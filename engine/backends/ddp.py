"""One process a device, all with the whole model: gradients meet in all-reduce (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import datetime
import inspect
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from contracts.plan import Plan
from engine.backends.single import Single
from engine.beacon import collective
from engine.planning import process_group

# Longer than a hang may last before the launcher ends the run and says which rank is guilty.
TIMEOUT_FACTOR = 2
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
        self.join(plan)
        super().__init__(plan)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if plan.device == "cuda":
            self.device = torch.device("cuda", local)

    def join(self, plan: Plan) -> None:
        """Enter the process group."""
        timeout = datetime.timedelta(seconds=plan.longest_silence * TIMEOUT_FACTOR)
        dist.init_process_group(process_group(plan.device, platform.system()), timeout=timeout)

    def wrap(self, objective: nn.Module) -> Any:
        # Buffers are kept equal by GhostStatistics; broadcasting them too would be work for nothing.
        options: dict[str, Any] = {BUFFERS: False, "gradient_as_bucket_view": True}
        devices = [self.device] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(objective.to(self.device), device_ids=devices, **options)
        if self.plan.compress_gradients:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    def accumulate(self, *, meet: bool) -> AbstractContextManager[Any]:
        return nullcontext() if meet else self.forward.no_sync()

    def meets_in(self, phase: str, *, meet: bool) -> bool:
        return phase == "backward" and meet

    def exchange(self, numbers: torch.Tensor, *, gradients: bool) -> Callable[[], torch.Tensor]:
        """A gradient that only some ranks have counts as zero elsewhere."""
        if not gradients:
            return lambda: self.sum(numbers)
        flat = self._flat_gradients()
        if self.plan.compress_gradients:
            halves = self._send(flat, torch.cat(flat).bfloat16())

            def arrived() -> torch.Tensor:
                halves()
                return self.sum(numbers)

            return arrived
        arriving = self._send(flat, torch.cat([*flat, numbers.to(self.device)]))
        return lambda: arriving()[-len(numbers) :]

    def _flat_gradients(self) -> list[torch.Tensor]:
        """Each parameter's gradient as one row in the order of its memory, which is that of the parameter on every rank."""
        for value in self.parameters:
            if value.requires_grad and value.grad is None:
                value.grad = torch.zeros_like(value)
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        return [value.as_strided((value.numel(),), (1,)) for value in gradients]

    def _send(self, flat: list[torch.Tensor], message: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Send the gradients, which are the beginning of `message`; the wait overwrites them by the mean, and gives all the sums."""
        sending = dist.all_reduce(message, async_op=True)

        def arrived() -> torch.Tensor:
            with collective("all-reduce of gradients"):
                sending.wait()
                if message.is_cuda:  # the wait itself, so that it is seen where it is
                    torch.cuda.current_stream().synchronize()
            lengths = [len(value) for value in flat]
            means = message[: sum(lengths)].float() / self.ranks
            torch._foreach_copy_(flat, means.split(lengths))  # pyright: ignore[reportPrivateImportUsage]
            return message

        return arrived

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        total = values.to(self.device)
        with collective("all-reduce of losses and statistics"):
            dist.all_reduce(total)
            if total.is_cuda:  # the wait itself, so that it is seen where it is
                torch.cuda.current_stream().synchronize()
        return total

    def gather(self, value: Any) -> list[Any] | None:
        gathered: list[Any] | None = [None] * self.ranks if self.rank == 0 else None
        with collective("gather of results"):
            dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: Any) -> Any:
        box = [value]
        with collective("broadcast from rank 0"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        dist.destroy_process_group()
