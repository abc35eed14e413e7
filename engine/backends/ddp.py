"""One process a device, all with the whole model: gradients meet in all-reduce (on GPUs NCCL; on CPUs gloo, or memory they share)."""

from __future__ import annotations

import datetime
import inspect
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from contracts.errors import SlipwayError
from contracts.plan import Plan
from engine.backends.shared_memory import SharedMemory, share_memory
from engine.backends.single import Single
from engine.beacon import collective
from engine.planning import process_group

# Longer than ranks wait for one that scores or writes. Hangs are the launcher's to notice, which ends the run and says who is guilty.
TIMEOUT = datetime.timedelta(days=1)
# Elements of the gradients that are dealt with together.
PIECE = 1 << 16
# Newer versions of torch have another name for the option.
BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@contextmanager
def explained(inside: AbstractContextManager[Any]) -> Iterator[None]:
    """Is `inside`, and says what to do where a parameter got no gradient for the first time when they already met in the backward.

    Raises:
        SlipwayError: then, at the next forward.
    """
    try:
        with inside:
            yield
    except RuntimeError as error:
        if "finished reduction in the prior iteration" not in str(error):
            raise
        raise SlipwayError(
            "a trainable parameter got no gradient from a batch, after some steps in which all did: let every one take part in every"
            f" loss (add 0 times its sum), or set plan.backend to single or dp. DDP says: {' '.join(str(error).split())}"
        ) from error


class Ddp(Single):
    """Differs from `Single` in how gradients and numbers meet."""

    def __init__(self, plan: Plan) -> None:
        local = int(os.environ["LOCAL_RANK"])
        if plan.device == "cuda":
            torch.cuda.set_device(local)
        self.join(plan)
        super().__init__(plan)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._means: torch.Tensor | None = None
        self._shared: dict[int, SharedMemory | None] = {}
        if plan.device == "cuda":
            self.device = torch.device("cuda", local)

    def join(self, plan: Plan) -> None:
        """Enter the process group."""
        dist.init_process_group(process_group(plan.device, platform.system()), timeout=TIMEOUT)

    def wrap(self, objective: nn.Module) -> Any:
        # Buffers are kept equal by GhostStatistics; broadcasting them too would be work for nothing.
        options: dict[str, Any] = {BUFFERS: False, "gradient_as_bucket_view": True}
        devices = [self.device] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(objective.to(self.device), device_ids=devices, **options)
        if self.plan.compress_gradients:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    def accumulate(self, *, meet: bool) -> AbstractContextManager[Any]:
        return explained(nullcontext() if meet else self.forward.no_sync())

    def lacks_gradients(self) -> bool:
        """DDP's reducer waits for the gradient of every parameter that trains, in the optimiser or not."""
        return any(value.grad is None for value in self.objective.parameters() if value.requires_grad)

    def meets_in(self, phase: str, *, meet: bool) -> bool:
        return phase == "backward" and meet

    def exchange(self, numbers: torch.Tensor, *, gradients: bool) -> Callable[[], torch.Tensor]:
        """A gradient that only some ranks have counts as zero elsewhere."""
        if not gradients:
            return lambda: self.sum(numbers)
        rows = self._rows()
        count = sum(map(len, rows))
        if self.plan.compress_gradients:
            halves = self._send(torch.cat(rows).bfloat16())

            def arrived() -> torch.Tensor:
                self._take(halves())
                return self.sum(numbers)

            return arrived
        together = self._send_rows([*rows, numbers.to(self.device)])

        def arrived_together() -> torch.Tensor:
            message = together()
            self._take(message[:count])
            return message[count:]

        return arrived_together

    def _rows(self) -> list[torch.Tensor]:
        """Each parameter's gradient as one row in the order of its memory, which is that of the parameter on every rank."""
        for value in self._trained():
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        return [value.grad.as_strided((value.numel(),), (1,)) for value in self._trained() if value.grad is not None]

    def _trained(self) -> list[torch.Tensor]:
        return [value for value in self.parameters if value.requires_grad]

    def _send_rows(self, rows: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Send rows as one message, as `_send` does, or through memory that the ranks share."""
        length = sum(map(len, rows))
        if self.device.type == "cpu" and length not in self._shared:
            self._shared = {length: share_memory(length)}
        shared = self._shared.get(length)
        if shared is None:
            return self._send(torch.cat(rows))
        sending = shared.send(rows)

        def arrived() -> torch.Tensor:
            with collective("all-reduce of gradients"):
                return sending()

        return arrived

    def _send(self, message: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Send a message [n]; the wait gives the sum over the ranks, in its place."""
        sending = dist.all_reduce(message, async_op=True)

        def arrived() -> torch.Tensor:
            with collective("all-reduce of gradients"):
                sending.wait()
                if message.is_cuda:  # the wait itself, so that it is seen where it is
                    torch.cuda.current_stream().synchronize()
            return message

        return arrived

    def _take(self, sums: torch.Tensor) -> None:
        """Let the gradients be their means over the ranks, whose `sums` [elements] are given."""
        self._lay_out(sums.float().div_(self.ranks))

    def _lay_out(self, means: torch.Tensor) -> torch.Tensor:
        """Let the gradients be views of their `means` [elements], which are given back."""
        trained = self._trained()
        for value, row in zip(trained, means.split([value.numel() for value in trained]), strict=True):
            value.grad = row.as_strided(value.shape, value.stride())
        self._means = means
        return means

    def gradients(self) -> list[torch.Tensor]:
        """Few and large ones, yet not so large that adding up their squares in fp32 loses digits.

        They are the same wherever gradients have met: other pieces would give the norm, and with it the weights, another last digit.
        """
        means = self._lay_out(torch.cat(self._rows())) if self._means is None else self._means
        return list(means.split(PIECE))

    def forget(self) -> None:
        super().forget()
        self._means = None

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
