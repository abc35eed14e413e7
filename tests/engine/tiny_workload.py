"""A workload so small that a whole preflight of it takes no second: rows of numbers in four classes, told apart by a few layers.

What a backend, a checkpoint or a resumed run can get wrong is in it: batch statistics, dropout, frozen weights, an optimiser
with two groups, and noise in the rows. A rank that trains it imports nothing but torch, numpy and the house.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from contracts.plan import Plan
from contracts.records import Record, Records, write_records
from contracts.run import RunSpec
from contracts.settings import Settings, Share, TrainSettings
from contracts.workload import Dataset, Facts, Graph, Measure, Metric, Run, Scores

NAME, NUM_INPUTS, NUM_CLASSES = "tiny", 6, 4
CHANNELS, LENGTH, NUM_BLOCKS = 16, 16, 2
ROWS_PER_CALL = 8


class TinyTrain(TrainSettings):
    """Beside what every workload has, how much is dropped."""

    ghost_batch: int = 2
    optimizer: Literal["AdamW", "SGD"] = "AdamW"
    dropout: Share = 0.1


class TinySettings(Settings):
    """Everything that can be set for the tiny workload."""

    train: TinyTrain = TinyTrain()


class TinyDataset:
    """Rows of float32 with their class, a little noise added in training."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> dict[str, Any]:
        record = self.records[index]
        row = np.array(record.inputs["row"], np.float32)
        if rng is not None:
            row += rng.normal(0, 0.01, row.shape).astype(np.float32)
        return {"rows": row, "labels": record.targets["kind"]}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([item["labels"] for item in items])
        return {"rows": torch.from_numpy(np.stack([item["rows"] for item in items])), "labels": labels}


class Block(nn.Module):
    """A convolution along the length, normalised over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(CHANNELS)

    def forward(self, spread: torch.Tensor) -> torch.Tensor:
        """[B, CHANNELS, LENGTH] to the same."""
        return functional.silu(self.norm(self.convolution(spread)))


class TinyObjective(nn.Module):
    """Cross-entropy of a few layers, with a frozen one between them and a teacher that is only asked."""

    expected_loss = math.log(NUM_CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_INPUTS, CHANNELS * LENGTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(NUM_BLOCKS)))
        self.between, self.last = nn.Linear(CHANNELS, 16), nn.Linear(16, NUM_CLASSES)
        self.between.requires_grad_(False)
        self.dropout = nn.Dropout()
        nn.init.normal_(self.last.weight, std=0.01)

    def features(self, rows: torch.Tensor) -> torch.Tensor:
        spread = torch.tanh(self.first(rows)).unflatten(1, (CHANNELS, LENGTH))
        return self.dropout(self.between(self.blocks(spread).mean(2)))

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(rows))

    def teacher(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["rows"].sum(1)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": functional.cross_entropy(self.logits(batch["rows"]), batch["labels"], ignore_index=-100)}


class Shipped(nn.Module):
    """The objective's scores."""

    def __init__(self, objective: TinyObjective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.objective.logits(rows).softmax(1)


class Tiny:
    """See `contracts.workload.Workload`; only what training, preflight and export call. Tests plant faults in its parts."""

    Settings = TinySettings
    metric = Metric("accuracy")
    make_dataset: type[TinyDataset] = TinyDataset
    make_objective: type[TinyObjective] = TinyObjective
    shipped: type[Shipped] = Shipped

    def dataset(self, records: Records, settings: TinySettings, facts: Facts, *, training: bool) -> Dataset:
        return self.make_dataset(records)

    def build(self, settings: TinySettings, facts: Facts, *, pretrained: bool) -> TinyObjective:
        objective = self.make_objective()
        objective.dropout.p = settings.train.dropout
        return objective

    def optimizer(self, objective: nn.Module, settings: TinySettings) -> torch.optim.Optimizer:
        trained = [value for value in objective.parameters() if value.requires_grad]
        decayed, plain = ([one for one in trained if (one.ndim > 1) == many] for many in (True, False))
        groups = [{"params": decayed, "weight_decay": settings.train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        if settings.train.optimizer == "SGD":
            return torch.optim.SGD(groups, lr=settings.train.learning_rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, lr=settings.train.learning_rate)

    def graphs(self, objective: Any, settings: TinySettings, facts: Facts) -> dict[str, Graph]:
        axes = {"rows": {0: "batch"}, "scores": {0: "batch"}}
        module = self.shipped(objective).eval()
        return {"tell": Graph(module, {"rows": np.zeros((1, NUM_INPUTS), np.float32)}, ("scores",), axes)}

    def measure(self, run: Run, records: Records, settings: TinySettings, facts: Facts) -> Iterator[Measure]:
        for first in range(0, len(records), ROWS_PER_CALL):
            some = list(records.take(range(first, min(first + ROWS_PER_CALL, len(records)))))
            scores = run("tell", rows=np.array([record.inputs["row"] for record in some], np.float32))["scores"]
            yield from ({"right": int(row.argmax()) == one.targets["kind"]} for row, one in zip(scores, some, strict=True))

    def score(self, measures: Iterable[Measure], settings: TinySettings, facts: Facts) -> Scores:
        return Scores({"accuracy": float(np.mean([one["right"] for one in measures]))})


def write_rows(folder: Path, *, num_train: int, num_val: int) -> None:
    """Records of random rows, whose class is the place of the largest of their first numbers."""
    import pyarrow as pa

    rows = np.random.default_rng(0).normal(size=(num_train + num_val, NUM_INPUTS)).round(3)
    splits = ["train"] * num_train + ["val"] * num_val
    records = [
        Record(f"row-{place}", "", {"row": row.tolist()}, {"kind": int(row[:NUM_CLASSES].argmax())}, split)
        for place, (row, split) in enumerate(zip(rows, splits, strict=True))
    ]
    inputs, targets = pa.struct([("row", pa.list_(pa.float32()))]), pa.struct([("kind", pa.int32())])
    write_records(folder, records, inputs=inputs, targets=targets, shares=(1, 0, 0))


def tiny_spec(folder: Path, *, publish: str = "file://registry", **train: Any) -> RunSpec:
    """A run of 24 steps of 8 rows on one rank, in a folder of its own."""
    write_rows(folder / "parse", num_train=64, num_val=16)
    sizes = {"epochs": 3, "global_batch": 8, "learning_rate": 0.01, "warmup_epochs": 0.5}
    settings = TinySettings.model_validate({"train": {**sizes, **train}, "publish": {"target": publish}})
    plan = Plan("single", "cpu", 1, 4, 2, 1, 0, 2, "fp32", {})
    paths = {"records": str(folder / "parse"), "root": str(folder), "output": str(folder / "run")}
    return RunSpec(NAME, settings.model_dump(mode="json"), {}, **paths, plan=plan, fingerprint="one")
