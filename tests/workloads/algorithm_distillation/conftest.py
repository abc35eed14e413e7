"""Collected histories of a few tasks, parsed, and a learner of the real classes with fresh weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contracts.records import Records
from tests.conftest import prepared
from workloads.algorithm_distillation import WORKLOAD
from workloads.algorithm_distillation.histories import Histories
from workloads.algorithm_distillation.settings import DistillationSettings


@dataclass(frozen=True)
class Tiny:
    """Parsed histories, what `parse` found, and settings that go with them."""

    raw: Path
    records: Records
    facts: dict[str, Any]
    settings: DistillationSettings

    @property
    def histories(self) -> Histories:
        return Histories(self.raw)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Two learners on each of the 81 tasks of Darkroom, 24 episodes."""
    settings = WORKLOAD.Settings()
    made = prepared("algorithm_distillation", settings, tmp_path_factory.mktemp("histories"), num=162)
    return Tiny(made.raw, Records.open(made.records, root=made.raw), made.facts, settings)
