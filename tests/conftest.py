"""Small real data for every test: scenes drawn by `sample()`, parsed by the real parser."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Scenes:
    """Raw scenes, the folder with their records, and their facts."""

    raw: Path
    records: Path
    facts: dict[str, Any]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """48 scenes of digits as `download` and `parse` leave them."""
    from contracts.records import Record, Records, write_records
    from contracts.workload import load

    workload = load("segmentation")
    folder = tmp_path_factory.mktemp("scenes")
    raw, parsed = folder / "raw", folder / "parse"
    raw.mkdir()
    workload.sample(raw, 48)
    settings = workload.Settings()
    inputs, targets = workload.schema()
    found = (item for item in workload.parse(raw, settings, processes=1) if isinstance(item, Record))
    write_records(parsed, found, inputs=inputs, targets=targets, shares=settings.parse.shares)
    return Scenes(raw, parsed, workload.facts(raw, Records.open(parsed, root=raw), settings))


@pytest.fixture
def make_spec(scenes: Scenes, tmp_path: Path) -> Callable[..., Any]:
    """A short run on the scenes: 32 px, 8 samples a batch, SGD; keywords change settings of `train`, `layout` the plan."""
    from contracts.plan import Plan
    from contracts.run import RunSpec
    from contracts.workload import load

    def make(
        name: str = "run",
        *,
        ranks: int = 1,
        micro_batch: int = 2,
        fingerprint: str = "one",
        backend: str | None = None,
        layout: dict[str, Any] | None = None,
        **train: Any,
    ) -> RunSpec:
        sizes = {"image_size": 32, "global_batch": 8, "ghost_batch": 2, "epochs": 2, "warmup_epochs": 0.5}
        rates = {"optimizer": "SGD", "learning_rate": 0.002, "ema_decay": 0.9}
        settings = load("segmentation").Settings.model_validate({"train": {**sizes, **rates, **train}})
        accumulation = settings.train.global_batch // (ranks * micro_batch)
        backend = backend or ("ddp" if ranks > 1 else "single")
        plan = Plan(backend, "cpu", ranks, micro_batch, accumulation, 1, 0, 2, "fp32", {}, **layout or {})  # pyright: ignore
        folders = {"records": str(scenes.records), "root": str(scenes.raw), "output": str(tmp_path / name)}
        return RunSpec(
            "segmentation", settings.model_dump(mode="json"), scenes.facts, **folders, plan=plan, fingerprint=fingerprint
        )

    return make
