"""Hugging Face Accelerate: its Accelerator wraps the model and the optimiser, and owns precision and the process group."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from contracts.errors import SlipwayError
from contracts.plan import Plan
from engine.backends.ddp import BUFFERS, TIMEOUT, Ddp, explained
from engine.backends.single import MakeOptimizer
from engine.planning import process_group


class Accelerate(Ddp):
    """Differs from `Ddp` in who wraps: gradients and numbers meet in the same process group."""

    def join(self, plan: Plan) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

        group = InitProcessGroupKwargs(backend=process_group(plan.device, platform.system()), timeout=TIMEOUT)
        wrapping: dict[str, Any] = {BUFFERS: False, "gradient_as_bucket_view": True}
        hook = {"comm_hook": "bf16"} if plan.compress_gradients else {}
        self.accelerator = Accelerator(
            cpu=plan.device == "cpu",
            mixed_precision="no" if plan.precision == "fp32" else plan.precision,
            kwargs_handlers=[group, DistributedDataParallelKwargs(**_known(wrapping), **hook)],  # pyright: ignore[reportArgumentType]
        )
        there, wanted = self.accelerator.num_processes, int(os.environ["WORLD_SIZE"])
        if there != wanted:
            raise SlipwayError(
                f"Accelerate made {there} process of a run of {wanted} ranks, which would train {wanted} models apart: unset the"
                " ACCELERATE_* variables of this shell, or set plan.backend to ddp"
            )
        if not torch.distributed.is_initialized():  # a single process needs none, and Accelerate makes none
            torch.distributed.init_process_group(process_group(plan.device, platform.system()), timeout=TIMEOUT)

    def wrap(self, objective: nn.Module) -> Any:
        return self.accelerator.prepare(objective.to(self.device))

    def optimize(self, make_optimizer: MakeOptimizer) -> torch.optim.Optimizer:
        self.prepared = self.accelerator.prepare(make_optimizer(self.objective))
        self.scaler = self.accelerator.scaler or self.scaler
        return self.prepared.optimizer

    def accumulate(self, *, meet: bool) -> AbstractContextManager[Any]:
        return explained(nullcontext() if meet else self.accelerator.no_sync(self.forward))

    def autocast(self) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)


def _known(wrapping: dict[str, Any]) -> dict[str, Any]:
    """Accelerate knows the options of DDP by their older names."""
    return {"broadcast_buffers" if name == BUFFERS else name: value for name, value in wrapping.items()}
