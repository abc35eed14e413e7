"""A small transformer that learns to predict tokens, as a workload that only `benchmarks.ranks` knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from contracts.plan import Plan
from contracts.records import Record, Records, write_records
from contracts.run import RunSpec
from contracts.settings import Settings
from contracts.workload import Facts, Metric

VOCABULARY, LENGTH, WIDTH, LAYERS, HEADS = 1024, 128, 256, 4, 4


class Tokens:
    """Random tokens, the same for an index every time."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int, rng: Any, *, draw: int, progress: float) -> np.ndarray:
        return np.random.default_rng(index).integers(VOCABULARY, size=LENGTH + 1)

    def collate(self, items: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        return {"tokens": torch.from_numpy(np.stack(items))}


class NextToken(nn.Module):
    """Cross-entropy of the next token: 3.7 million weights."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.embedding, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`batch["tokens"]` [B, LENGTH + 1]."""
        given, wanted = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=given.device)
        seen = self.layers(self.embedding(given) + self.position, mask=mask, is_causal=True)
        return {"loss": functional.cross_entropy(self.head(seen).flatten(0, 1), wanted.flatten())}


class LanguageModel:
    """What of a workload the loop calls before its first validation."""

    Settings = Settings
    metric = Metric("accuracy")

    def dataset(self, records: Records, settings: Settings, facts: Facts, *, training: bool) -> Tokens:
        return Tokens(records)

    def build(self, settings: Settings, facts: Facts, *, pretrained: bool) -> nn.Module:
        return NextToken()

    def optimizer(self, objective: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        return torch.optim.AdamW(objective.parameters(), settings.train.learning_rate)


def spec(folder: Path, plan: Plan) -> RunSpec:
    """A run of it in batches as the plan divides them; its records are only numbers."""
    if not (folder / "parse").exists():
        rows = (Record(f"sequence-{number}", "", {"number": number}, {"number": number}) for number in range(2048))
        kind = pa.struct({"number": pa.int64()})
        write_records(folder / "parse", rows, inputs=kind, targets=kind, shares=(0.9, 0.1, 0.0))
    settings = Settings.model_validate({"train": {"global_batch": plan.global_batch, "epochs": 100}})
    places = {"records": str(folder / "parse"), "root": str(folder), "output": str(folder / "run")}
    return RunSpec("language_model", settings.model_dump(mode="json"), {}, **places, plan=plan, fingerprint="benchmark")
