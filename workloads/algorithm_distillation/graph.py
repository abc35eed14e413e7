"""The graph that ships: one moment and the cache of those before to the next action, and to what joins the cache."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.workload import Facts, Graph
from workloads.algorithm_distillation.model import Learner
from workloads.algorithm_distillation.settings import DistillationTrain
from workloads.algorithm_distillation.tokens import FIELDS, NOWHERE, Vocabulary


class Step(nn.Module):
    """See `Learner.step`."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(
        self, tokens: torch.Tensor, position: torch.Tensor, cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.learner.step(tokens, position, cache)


def graphs(learner: Learner, settings: DistillationTrain, facts: Facts) -> dict[str, Graph]:
    """The step, of a copy on the CPU."""
    module = Step(copy.deepcopy(learner).cpu().float().requires_grad_(False)).eval()
    shape = (1, settings.layers, 2, settings.heads, 2, settings.width // settings.heads)
    return {
        "step": Graph(
            module=module,
            inputs={
                "tokens": np.zeros((1, len(FIELDS)), np.int64),
                "position": np.zeros(1, np.int64),
                "cache": np.zeros(shape, np.float32),
            },
            outputs=("logits", "fresh"),
            dynamic={
                "tokens": {0: "batch"},
                "position": {0: "batch"},
                "cache": {0: "batch", 4: "capacity"},
                "logits": {0: "batch"},
                "fresh": {0: "batch"},
            },
            preprocessing=preprocessing(facts),
        )
    }


def preprocessing(facts: Facts) -> dict[str, Any]:
    """What a token is, as data that travels with the graph."""
    vocabulary = Vocabulary.of(facts)
    return {
        "input": "tokens",
        "fields": dict(zip(FIELDS, vocabulary.sizes, strict=True)),
        "action and reward": f"action * {vocabulary.num_rewards} + reward; {vocabulary.nothing} at the start of an episode",
        "before the first moment": NOWHERE,
        "cache": "layers, keys and values, heads, positions, channels; put what comes out as `fresh` at `position`",
        "choose": "draw the action from the softmax of the logits: the likeliest one gets stuck",
    }
