"""What the machine has, and how a run is laid out on it. Plain data; `engine.hardware` fills it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from contracts.files import read_json, write_json

Backend = Literal["single", "dp", "ddp", "fsdp", "deepspeed", "accelerate"]
Precision = Literal["fp32", "bf16", "fp16"]
Offload = Literal["none", "optimizer", "parameters"]
COMPILE_SECONDS = 1800.0


@dataclass(frozen=True)
class Device:
    """One accelerator. Memory in bytes; `capability` is CUDA's (major, minor)."""

    index: int
    name: str
    memory: int
    free: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Hardware:
    """What this process may use. `cores` counts the logical cores of its affinity and quota; memory and disk in bytes.

    `notes` says in words what was odd: sources that disagree, a GPU that is there and cannot be used.
    """

    devices: tuple[Device, ...]
    cpu: str
    cores: int
    memory: int
    free_memory: int
    free_disk: int
    platform: str
    bf16_cpu: bool = False
    driver: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Names the machine's shape, not its momentary load: two machines alike share a plan."""
        gpus = [f"{one.name}/{one.memory >> 30}" for one in self.devices]
        return "|".join([self.platform, self.cpu, str(self.cores), str(self.memory >> 30), *gpus])


@dataclass(frozen=True)
class Plan:
    """How one global batch is divided: ranks x micro_batch x accumulation samples, on `device` ("cuda" or "cpu").

    `replicas` are the devices that one process drives (backend `dp` only). `zero_stage` and `offload` (what rests in the
    memory of the CPU between uses) are for the backends that shard. `restarts` is how often a run whose rank was lost goes
    on by itself, `hang_seconds` how long a rank may show no progress. `reasons` says for each choice why it was made.
    """

    backend: Backend
    device: Literal["cuda", "cpu"]
    ranks: int
    micro_batch: int
    accumulation: int
    threads: int
    workers: int
    prefetch: int
    precision: Precision
    reasons: Mapping[str, str]
    hardware: str = ""
    replicas: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    compress_gradients: bool = False
    zero_stage: int = 2
    offload: Offload = "none"
    restarts: int = 3
    hang_seconds: float = 300

    @property
    def global_batch(self) -> int:
        return self.ranks * self.micro_batch * self.accumulation

    @property
    def longest_silence(self) -> float:
        """Seconds without progress after which a run counts as hung: `hang_seconds`, or longer where a step may compile."""
        return max(self.hang_seconds, COMPILE_SECONDS) if self.compile else self.hang_seconds

    def write(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Plan:
        return cls(**read_json(path))


def as_dict(value: Any) -> dict[str, Any]:
    """A frozen noun as plain values for JSON."""
    return dataclasses.asdict(value)
