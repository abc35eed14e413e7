"""The graphs that ship: one moment and the cache of those before to the next action; and a window to its latents."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.workload import Facts, Graph
from workloads.algorithm_distillation.model import Learner
from workloads.algorithm_distillation.rolling import Cache
from workloads.algorithm_distillation.settings import DistillationTrain
from workloads.algorithm_distillation.tokens import FIELDS, NOWHERE, Vocabulary


class Step(nn.Module):
    """See `Learner.step`."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, position, *cache = inputs
        return self.learner.step(tokens, position, cache)


class Compress(nn.Module):
    """See `Learner.compress`."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.learner.compress(latents, tokens)


def graphs(learner: Learner, settings: DistillationTrain, facts: Facts) -> dict[str, Graph]:
    """The step, and where histories are cut into windows what is done at their ends; of a copy on the CPU."""
    learner = copy.deepcopy(learner).cpu().float().requires_grad_(False).eval()
    made = {"step": step_graph(learner, settings, facts)}
    return made if learner.compressor is None else {**made, "compress": compress_graph(learner, settings)}


def compress_graph(learner: Learner, settings: DistillationTrain) -> Graph:
    return Graph(
        module=Compress(learner).eval(),
        inputs={
            "latents": np.zeros((1, settings.latents, settings.width), np.float32),
            "tokens": np.zeros((1, learner.window, len(FIELDS)), np.int64),
        },
        outputs=("latents_after", "cache"),
        dynamic={name: {0: "batch"} for name in ("latents", "tokens", "latents_after", "cache")},
    )


def step_graph(learner: Learner, settings: DistillationTrain, facts: Facts) -> Graph:
    cache = Cache(1, settings)
    return Graph(
        module=Step(learner).eval(),
        inputs={
            "tokens": np.zeros((1, len(FIELDS)), np.int64),
            "position": np.zeros(1, np.int64),
            **cache.arrays,
        },
        outputs=("logits", "fresh"),
        dynamic={
            "tokens": {0: "batch"},
            "position": {0: "batch"},
            **{name: {0: "batch", 2: "capacity"} for name in cache.arrays},
            "logits": {0: "batch"},
            "fresh": {0: "batch"},
        },
        preprocessing=preprocessing(facts),
    )


def preprocessing(facts: Facts) -> dict[str, Any]:
    """What a token is, as data that travels with the graph."""
    vocabulary = Vocabulary.of(facts)
    return {
        "input": "tokens",
        "fields": dict(zip(FIELDS, vocabulary.sizes, strict=True)),
        "action and reward": f"action * {vocabulary.num_rewards} + reward; {vocabulary.nothing} at the start of an episode",
        "before the first moment": NOWHERE,
        "cache": "heads, positions, channels; put what comes out as `fresh`, by layers, keys and values, at `position`",
        "choose": "draw the action from the softmax of the logits: the likeliest one gets stuck",
    }
