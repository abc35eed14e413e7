"""What is learnt: the action that the source meant at every step of its learning, given all that came before."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from contracts.errors import SlipwayError
from contracts.workload import Facts
from workloads.algorithm_distillation.environments.room import NUM_ACTIONS
from workloads.algorithm_distillation.model import Learner
from workloads.algorithm_distillation.settings import DistillationSettings, DistillationTrain
from workloads.algorithm_distillation.tokens import IGNORED, Vocabulary


class DistillationObjective(nn.Module):
    """Batch in, losses out: the cross-entropy of the actions, a mean over the steps that are targets."""

    expected_loss = math.log(NUM_ACTIONS)

    def __init__(self, learner: Learner, settings: DistillationTrain) -> None:
        super().__init__()
        self.learner, self.label_smoothing = learner, settings.label_smoothing

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`batch`: tokens int16 [B, L, 7], labels int64 [B, L]. Beside loss and weight: shares of right actions."""
        labels = batch["labels"]
        there = labels != IGNORED
        logits = self.learner(batch["tokens"])[there].float()
        loss = functional.cross_entropy(logits, labels[there], label_smoothing=self.label_smoothing)
        right = torch.zeros_like(there)
        right[there] = logits.detach().argmax(-1) == labels[there]
        return {"loss": loss, "weight": there.sum().float(), **self._accuracy(right, there)}

    def _accuracy(self, right: torch.Tensor, there: torch.Tensor) -> dict[str, torch.Tensor]:
        """The share of targets that come out likeliest: of all, and after each number of compressions."""
        found = {"accuracy": right.sum() / there.sum()}
        if size := self.learner.window:
            windows = zip(right.split(size, 1), there.split(size, 1), strict=True)
            found |= {
                f"accuracy_depth_{depth}": own.sum() / num.sum().clamp(min=1) for depth, (own, num) in enumerate(windows)
            }
        return found


def build(settings: DistillationSettings, facts: Facts) -> DistillationObjective:
    """The objective with fresh weights.

    Raises:
        SlipwayError: when a window is as long as the histories, or more episodes count than there are.
    """
    settings.evaluate.fits(facts["episodes"])
    if settings.train.window and settings.train.window >= facts["episodes"]:
        raise SlipwayError(
            f"train.window = {settings.train.window} leaves nothing to compress in histories of {facts['episodes']} episodes: "
            "make it smaller, or null for none"
        )
    return DistillationObjective(Learner(Vocabulary.of(facts).sizes, settings.train), settings.train)


def make_optimizer(objective: nn.Module, settings: DistillationTrain) -> torch.optim.Optimizer:
    """AdamW; biases and norms do not decay."""
    decaying = [value for value in objective.parameters() if value.requires_grad and value.ndim > 1]
    others = [value for value in objective.parameters() if value.requires_grad and value.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
