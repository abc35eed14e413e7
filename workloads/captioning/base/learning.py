"""The plain loop that both base models are trained by: AdamW, warm-up, cosine to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from contracts.progress import track


def learn(
    module: nn.Module, loss_of_a_batch: Callable[[], torch.Tensor], *, steps: int, rate: float, warmup: int, title: str
) -> list[float]:
    """Train a module in place and give the loss of each step; `warmup` is in steps, `title` is what the progress is called."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    losses = []
    for step in track(range(steps), title):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of_a_batch()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
