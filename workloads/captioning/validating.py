"""How good weights are while they train: what ships, but for the frozen encoder, whose features of every picture are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from contracts.records import Records
from contracts.workload import Facts, Graph, Measure, Run, Shortcut
from workloads.captioning import pictures
from workloads.captioning.features import Features, keeps_features
from workloads.captioning.generating import go_on
from workloads.captioning.graph import graphs
from workloads.captioning.model import Captioner, Projection, pooled
from workloads.captioning.predicting import Said, batches, measured
from workloads.captioning.settings import CaptioningSettings
from workloads.captioning.words import Words


class Prefix(nn.Module):
    """features float16 [batch, tokens, width] to prefix float32 [batch, prefix tokens, decoder width]."""

    def __init__(self, projection: Projection, prefix_tokens: int | None) -> None:
        super().__init__()
        self.projection, self.prefix_tokens = projection, prefix_tokens

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.projection(pooled(features.float(), self.prefix_tokens))


def shortcut(captioner: Captioner, settings: CaptioningSettings, facts: Facts) -> Shortcut | None:
    """The graphs that ship with one from features instead of the encoder; None where features are not kept."""
    if not keeps_features(settings):
        return None
    parts = graphs(captioner, facts)
    whole = parts.pop("encoder").module.captioner
    features = Features.of(facts, Path(facts["prepared"]))
    parts["prefix"] = Graph(
        module=Prefix(whole.projection, whole.prefix_tokens).eval(),  # pyright: ignore
        inputs={"features": np.zeros((1, *features.shape), np.float16)},
        outputs=("prefix",),
        dynamic={"features": {0: "batch"}, "prefix": {0: "batch"}},
    )

    def measure(run: Run, records: Records) -> Iterator[Measure]:
        how, words = settings.evaluate, Words(facts["tokenizer"])
        for some in batches(iter(records), how.batch_size):
            seen = np.stack([features.of_picture(record.inputs["sha256"]) for record in some])
            prefix = run("prefix", features=seen)["prefix"]
            spoken = go_on(run, prefix, end=words.end, longest=how.longest, beams=how.beams)
            images = [pictures.read(records.root, record.inputs) for record in some] if how.clip else []
            yield from measured(some, images, [Said(tokens, words.text(tokens)) for tokens in spoken], settings, words)

    return Shortcut(parts, measure)
