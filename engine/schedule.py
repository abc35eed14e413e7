"""The learning rate as a function of the step alone, so that it ends where it should on any number of ranks."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, num_steps: int, warmup_steps: float, final: float) -> float:
    """The factor on the learning rate in step `step` (from 0): linear up over `warmup_steps`, then a cosine down to `final`."""
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    over = max(0.0, step - warmup_steps) / max(1.0, num_steps - 1 - warmup_steps)
    return warm * (final + (1 - final) * (1 + math.cos(math.pi * min(1.0, over))) / 2)
