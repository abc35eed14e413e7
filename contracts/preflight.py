"""What is known of a run before it starts: what each check found, and what the run will take. Plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contracts.files import read_json, write_json

State = Literal["passed", "warning", "failed", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What one check found. `reason` is what was seen, or why there is nothing to check; a failed one names its likely cause
    and a remedy, and so does a warning, which may be meant and stops nothing."""

    name: str
    state: State
    reason: str
    cause: str = ""
    remedy: str = ""

    def line(self) -> str:
        """All of it in one line."""
        why = f"; {self.cause} -> {self.remedy}" if self.state in ("failed", "warning") else ""
        return f"{self.state:<15} {self.name:<18} {self.reason}{why}"


@dataclass(frozen=True)
class Estimate:
    """What a run takes, from a few of its steps. Times in seconds, sizes in bytes.

    `memory` is what all ranks of this machine had at their peak; on a GPU, what the fullest one had reserved. `checkpoint`
    and `weights` are the sizes of one file of each.
    """

    num_steps: int
    step_seconds: float
    num_validations: int
    validation_seconds: float
    memory: int
    checkpoint: int
    weights: int

    @property
    def seconds(self) -> float:
        """Steps and validations together."""
        return self.num_steps * self.step_seconds + self.num_validations * self.validation_seconds


@dataclass(frozen=True)
class Report:
    """A preflight: what it found, in the order of the checks. `fingerprint` names what it looked at: a run, its plan, its target.
    `estimate` is None where no step could be made."""

    fingerprint: str
    findings: tuple[Finding, ...]
    estimate: Estimate | None = None

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.state == "failed")

    def write(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Report:
        value = read_json(path)
        estimate = Estimate(**value["estimate"]) if value["estimate"] else None
        return cls(value["fingerprint"], tuple(Finding(**one) for one in value["findings"]), estimate)
