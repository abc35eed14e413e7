"""The memory that training one model takes on a rank: plain numbers, which `engine/memory.py` measures."""

from __future__ import annotations

import os
from dataclasses import dataclass

from contracts.plan import Backend, Offload

GIB = 1 << 30
# Bytes that training may use: a smaller device than this machine has, to try what would happen on it.
LIMIT = "SLIPWAY_MEMORY_LIMIT"


@dataclass(frozen=True)
class Footprint:
    """Bytes before anything is divided among ranks.

    `weights` are those that train, in fp32 (their gradients take as much); `frozen` the other parameters and the buffers;
    `optimizer` its state; `average` the averaged weights; `validation` the copy that is scored; `sample` the activations of
    one sample at their peak; `workspace` what a step takes besides, however few its samples. `notes` say how it was found.
    `recomputed` is the same with activations computed twice; None where nobody measured that.
    """

    weights: int = 0
    frozen: int = 0
    optimizer: int = 0
    average: int = 0
    validation: int = 0
    sample: int = 0
    workspace: int = 0
    notes: tuple[str, ...] = ()
    recomputed: Footprint | None = None

    def resting(self, backend: Backend, *, ranks: int = 1, zero_stage: int = 2, offload: Offload = "none") -> int:
        """Bytes on the device of each rank before the first sample."""
        divided = {"fsdp": self._fsdp, "deepspeed": self._deepspeed}.get(backend)
        held = self.validation + self.workspace
        if divided:
            return held + divided(ranks, zero_stage, offload)
        met = self.weights if ranks > 1 else 0  # gradients travel in a tensor of their own
        return held + 2 * self.weights + self.frozen + self.optimizer + self.average + met

    def _fsdp(self, ranks: int, zero_stage: int, offload: Offload) -> int:
        everything = 2 * self.weights + self.frozen + self.optimizer + self.average
        return 0 if offload != "none" else -(-everything // ranks)

    def _deepspeed(self, ranks: int, zero_stage: int, offload: Offload) -> int:
        """ZeRO keeps masters of the weights in pieces in every stage; 2 divides the gradients, 3 the weights themselves."""
        masters = 0 if offload != "none" else self.weights + self.optimizer + self.average
        gradients = self.weights * ranks if zero_stage == 1 else 0 if offload != "none" else self.weights
        weights = self.weights + self.frozen
        weights = weights * ranks if zero_stage < 3 else 0 if offload == "parameters" else weights
        return -(-(masters + gradients + weights) // ranks)

    def needed(self, micro_batch: int, backend: Backend, **how: int | str) -> int:
        """Bytes on the device of each rank with `micro_batch` samples; `how` as in `resting`."""
        return self.resting(backend, **how) + micro_batch * self.sample  # pyright: ignore[reportArgumentType]


def memory_limit() -> int | None:
    """The bytes that SLIPWAY_MEMORY_LIMIT allows; None where it is not set."""
    value = os.environ.get(LIMIT)
    return int(value) if value else None
