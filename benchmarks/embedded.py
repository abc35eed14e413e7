"""The embedded data set, drawn and parsed, and runs on it: what the engine's benchmarks train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.plan import Plan
from contracts.records import Record, Records, write_records
from contracts.run import RunSpec
from contracts.settings import Settings
from contracts.workload import ROOT, load, settings_of

# 10 steps an epoch of 8 samples each, each of a few milliseconds.
TINY = {"image_size": 32, "global_batch": 8, "ghost_batch": 2, "warmup_epochs": 0.5, "ema_decay": 0.9}


@dataclass(frozen=True)
class Embedded:
    """Scenes as `download` and `parse` leave them below `folder`."""

    folder: Path
    facts: dict[str, Any]

    def spec(self, name: str, plan: Plan, settings: Settings) -> RunSpec:
        """A run of that name, whose folder is `folder`/`name`."""
        return RunSpec(
            workload="segmentation",
            settings=settings.model_dump(mode="json"),
            facts=self.facts,
            records=str(self.folder / "parse"),
            root=str(self.folder / "raw"),
            output=str(self.folder / name),
            plan=plan,
            fingerprint="benchmark",
        )


def prepare(folder: Path, num_scenes: int) -> Embedded:
    """Draw and parse `num_scenes` scenes below `folder`."""
    workload, raw, parsed = load("segmentation"), folder / "raw", folder / "parse"
    raw.mkdir(parents=True)
    workload.sample(raw, num_scenes)
    settings = workload.Settings()
    inputs, targets = workload.schema()
    found = (item for item in workload.parse(raw, settings, processes=1) if isinstance(item, Record))
    write_records(parsed, found, inputs=inputs, targets=targets, shares=settings.parse.shares)
    return Embedded(folder, workload.facts(raw, Records.open(parsed, root=raw), settings))


def demo_settings(**train: Any) -> Settings:
    """What params.yaml says, with other values of `train`."""
    settings = settings_of("segmentation", ROOT / "params.yaml")
    return _with(settings, train)


def tiny_settings(**train: Any) -> Settings:
    """The smallest run that still has every part of a large one, with other values of `train`."""
    return _with(load("segmentation").Settings(), {**TINY, **train})


def _with(settings: Settings, train: dict[str, Any]) -> Settings:
    return type(settings).model_validate({**settings.model_dump(), "train": {**settings.train.model_dump(), **train}})


def cpu_plan(backend: Any, *, ranks: int, micro_batch: int, global_batch: int, **other: Any) -> Plan:
    """Ranks of one thread each on the CPU, which load their own data."""
    accumulation = global_batch // (ranks * micro_batch)
    return Plan(backend, "cpu", ranks, micro_batch, accumulation, 1, 0, 2, "fp32", {}, **other)
