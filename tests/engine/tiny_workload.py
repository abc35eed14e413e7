"""A workload so small that a whole preflight of it takes no second: rows of numbers in four classes, told apart by two layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from contracts.plan import Plan
from contracts.records import Record, Records, write_records
from contracts.run import RunSpec
from contracts.settings import Settings
from contracts.workload import Dataset, Facts, Graph, Measure, Metric, Run, Scores

NAME, NUM_INPUTS, NUM_CLASSES = "tiny", 6, 4


class TinyDataset:
    """Rows of float32 with their class, a little noise added in training."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int, rng: np.random.Generator | None, *, progress: float) -> dict[str, Any]:
        record = self.records[index]
        row = np.array(record.inputs["row"], np.float32)
        if rng is not None:
            row += rng.normal(0, 0.01, row.shape).astype(np.float32)
        return {"rows": row, "labels": record.targets["kind"]}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([item["labels"] for item in items])
        return {"rows": torch.from_numpy(np.stack([item["rows"] for item in items])), "labels": labels}


class TinyObjective(nn.Module):
    """Cross-entropy of two layers, with a frozen one between them and a teacher that is only asked."""

    expected_loss = math.log(NUM_CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(NUM_INPUTS, 16), nn.Linear(16, 16), nn.Linear(16, NUM_CLASSES)
        self.between.requires_grad_(False)
        self.dropout = nn.Dropout(0.1)
        nn.init.normal_(self.last.weight, std=0.01)

    def features(self, rows: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.between(torch.tanh(self.first(rows))))

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

    Settings = Settings
    metric = Metric("accuracy")
    make_dataset: type[TinyDataset] = TinyDataset
    make_objective: type[TinyObjective] = TinyObjective
    shipped: type[Shipped] = Shipped

    def dataset(self, records: Records, settings: Settings, facts: Facts, *, training: bool) -> Dataset:
        return self.make_dataset(records)

    def build(self, settings: Settings, facts: Facts, *, pretrained: bool) -> TinyObjective:
        return self.make_objective()

    def optimizer(self, objective: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        trained = [value for value in objective.parameters() if value.requires_grad]
        return torch.optim.AdamW(trained, settings.train.learning_rate)

    def graphs(self, objective: Any, settings: Settings, facts: Facts) -> dict[str, Graph]:
        axes = {"rows": {0: "batch"}, "scores": {0: "batch"}}
        module = self.shipped(objective).eval()
        return {"tell": Graph(module, {"rows": np.zeros((1, NUM_INPUTS), np.float32)}, ("scores",), axes)}

    def measure(self, run: Run, records: Records, settings: Settings, facts: Facts) -> Iterator[Measure]:
        for record in records:
            scores = run("tell", rows=np.array([record.inputs["row"]], np.float32))["scores"][0]
            yield {"right": int(scores.argmax()) == record.targets["kind"]}

    def score(self, measures: Iterable[Measure], settings: Settings, facts: Facts) -> Scores:
        return Scores({"accuracy": float(np.mean([one["right"] for one in measures]))})


def tiny_spec(folder: Path, *, publish: str = "file://registry", **train: Any) -> RunSpec:
    """A run of 24 steps of 8 rows on one rank, in a folder of its own."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, NUM_INPUTS)).round(3)
    records = [
        Record(f"row-{place}", "", {"row": row.tolist()}, {"kind": int(row[:NUM_CLASSES].argmax())}, split)
        for place, (row, split) in enumerate(zip(rows, ["train"] * 64 + ["val"] * 16, strict=True))
    ]
    inputs, targets = pa.struct([("row", pa.list_(pa.float32()))]), pa.struct([("kind", pa.int32())])
    write_records(folder / "parse", records, inputs=inputs, targets=targets, shares=(1, 0, 0))
    sizes = {"epochs": 3, "global_batch": 8, "learning_rate": 0.01, "warmup_epochs": 0.5}
    settings = Settings.model_validate({"train": {**sizes, **train}, "publish": {"target": publish}})
    plan = Plan("single", "cpu", 1, 4, 2, 1, 0, 2, "fp32", {})
    paths = {"records": str(folder / "parse"), "root": str(folder), "output": str(folder / "run")}
    return RunSpec(NAME, settings.model_dump(mode="json"), {}, **paths, plan=plan, fingerprint="one")
