"""A training run as it is handed to the processes that do it, and what they hand back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.files import read_json, write_json
from contracts.plan import Plan


@dataclass(frozen=True)
class RunSpec:
    """Everything that a rank needs to know; it travels as JSON. Folders are absolute or relative to the project's folder.

    `sampling_weights` is a file of how often each record of train is drawn, beside the others; None: all alike.
    """

    workload: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    records: str
    root: str
    output: str
    plan: Plan
    fingerprint: str
    sampling_weights: str | None = None

    def write(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> RunSpec:
        value = read_json(path)
        return cls(**{**value, "plan": Plan(**value["plan"])})


@dataclass(frozen=True)
class RunResult:
    """What a finished run reports. Times in seconds; `metrics` are those of the best weights on the val split."""

    steps: int
    epochs: float
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
    samples_per_second: float
    resumed_from: int = 0
    stopped_early: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> RunResult:
        return cls(**read_json(path))
