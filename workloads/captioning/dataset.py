"""Records to training batches: a caption of each picture as tokens, and the picture's features or its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contracts.records import Records
from contracts.workload import Facts
from workloads.captioning import pictures
from workloads.captioning.features import Features, keeps_features
from workloads.captioning.seeing import normalized, sized, varied
from workloads.captioning.settings import CaptioningSettings
from workloads.captioning.words import IGNORED, Words


class CaptioningDataset:
    """Pictures with one of their captions. Whenever a picture is drawn it comes with its next one, so that all are used."""

    def __init__(self, records: Records, settings: CaptioningSettings, facts: Facts, *, training: bool) -> None:
        self.records, self.settings, self.facts, self.training = records, settings, facts, training
        self.words = Words(facts["tokenizer"])
        self.features = Features.of(facts, Path(facts["prepared"])) if keeps_features(settings) else None

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> dict[str, Any]:
        """`ids`, a list of tokens with the one that ends a caption, and `features` float16 [tokens, width] or `pixels` uint8
        [size, size, 3]."""
        record = self.records[index]
        captions = record.targets["captions"]
        ids = self.words.ids(captions[(index + draw) % len(captions)], longest=self.settings.train.longest)
        if self.features:
            return {"ids": ids, "features": self.features.of_picture(record.inputs["sha256"])}
        picture = pictures.read(self.records.root, record.inputs)
        if self.settings.train.augment and rng is not None:
            picture = varied(picture, rng)
        return {"ids": ids, "pixels": sized(picture, self.facts["picture"])}

    def lengths(self, indices: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Tokens of the captions that `item` gives, with the one that ends them."""
        column, places = self.records.table["targets"], self.records.positions[indices].tolist()
        each = (column[place]["captions"].as_py() for place in places)
        captions = [one[number % len(one)] for one, number in zip(each, (indices + draws).tolist(), strict=True)]
        return self.words.lengths(captions, longest=self.settings.train.longest)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch as `CaptioningObjective` takes it, padded to its longest caption."""
        longest = max(len(item["ids"]) for item in items)
        ids = torch.full((len(items), longest), self.words.end)
        labels = torch.full((len(items), longest), IGNORED)
        for row, item in enumerate(items):
            length = len(item["ids"])
            ids[row, :length] = labels[row, :length] = torch.tensor(item["ids"])
        batch = {"ids": ids, "labels": labels}
        if self.features:
            return {**batch, "features": torch.from_numpy(np.stack([item["features"] for item in items]))}
        pixels = normalized(np.stack([item["pixels"] for item in items]), self.facts["picture"])
        return {**batch, "pixels": torch.from_numpy(pixels)}
