"""The algorithms whose learning is recorded, by name, each a file."""

from __future__ import annotations

from workloads.algorithm_distillation.sources.explorer import Explorer
from workloads.algorithm_distillation.sources.noisy_optimum import NoisyOptimum
from workloads.algorithm_distillation.sources.q_learning import QLearning
from workloads.algorithm_distillation.sources.source import Source

# Those that are told the task: there to compare with.
INFORMED = ("noisy_optimum",)
SOURCES: dict[str, type[Source]] = {"explorer": Explorer, "noisy_optimum": NoisyOptimum, "q_learning": QLearning}
