"""The algorithms whose learning is recorded, each a file and a class; imported when it is used, as one of them needs torch."""

from __future__ import annotations

from importlib import import_module

from workloads.algorithm_distillation.sources.source import Source

SOURCES = {"explorer": "Explorer", "noisy_optimum": "NoisyOptimum", "ppo": "PPO", "q_learning": "QLearning"}
# Those that are told the task: there to compare with.
INFORMED = ("noisy_optimum",)
# Those whose learners of a task learn from each other: how fast depends on how many there are.
TOGETHER = ("ppo",)


def source_named(name: str) -> type[Source]:
    """The algorithm of that name."""
    return getattr(import_module(f"{__name__}.{name}"), SOURCES[name])
