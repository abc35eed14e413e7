"""The algorithms whose learning is recorded, by name, each a file."""

from __future__ import annotations

from workloads.algorithm_distillation.sources.explorer import Explorer
from workloads.algorithm_distillation.sources.source import Source

SOURCES: dict[str, type[Source]] = {"explorer": Explorer}
