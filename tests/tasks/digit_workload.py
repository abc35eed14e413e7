"""A small real workload for the stages' tests: scikit-learn's handwritten digits, told apart by three convolutions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.records import Record, Records, write_records
from contracts.settings import Settings
from contracts.workload import Chart, Facts, Graph, Measure, Metric, Run, Scores

if TYPE_CHECKING:
    from torch import nn

NAME = "digits"
SPLITS = {"train": range(600), "val": range(600, 800), "test": range(800, 1000)}


class Digits:
    """See `contracts.workload.Workload`; only what the stages after training call."""

    Settings = Settings
    metric = Metric("accuracy")

    def build(self, settings: Settings, facts: Facts, *, pretrained: bool = True) -> nn.Module:
        import torch

        torch.manual_seed(settings.train.seed)
        return classifier(len(facts["classes"]))

    def graphs(self, objective: nn.Module, settings: Settings, facts: Facts) -> dict[str, Graph]:
        from torch import nn

        module = nn.Sequential(objective, nn.Softmax(1)).eval()
        axes = {"pixels": {0: "batch"}, "scores": {0: "batch"}}
        return {"classify": Graph(module, {"pixels": np.zeros((1, 16, 16), np.uint8)}, ("scores",), axes, {"levels": 17})}

    def measure(self, run: Run, records: Records, settings: Settings, facts: Facts) -> Iterator[Measure]:
        for record in records:
            scores = run("classify", pixels=enlarged(record)[None])["scores"][0]
            digit = record.targets["digit"]
            yield {"digit": digit, "found": int(scores.argmax()), "quality": float(scores[digit])}

    def score(self, measures: Iterable[Measure], settings: Settings, facts: Facts) -> Scores:
        pairs = np.array([(one["digit"], one["found"]) for one in measures])
        counts = np.zeros((10, 10), int)
        np.add.at(counts, tuple(pairs.T), 1)
        rows = [
            {"class": name, "accuracy": counts[i, i] / max(counts[i].sum(), 1)} for i, name in enumerate(facts["classes"])
        ]
        charts = [
            Chart(
                "Share right by digit", "lines", "digit", "share", {"right": (range(10), np.diag(counts) / counts.sum(1))}
            ),
            Chart("Confusion", "matrix", "predicted", "actual", matrix=counts.tolist(), labels=facts["classes"]),
            Chart("How many", "bars", "digit", "number", {"number": (range(10), counts.sum(1))}),
        ]
        share = float((pairs[:, 0] == pairs[:, 1]).mean())
        return Scores({"accuracy": share}, rows, charts, {"accuracy": "Share of the digits that were told right."})

    def gallery(self, run: Run, records: Records, settings: Settings, facts: Facts) -> Iterator[tuple[str, np.ndarray]]:
        for record, measure in zip(records, self.measure(run, records, settings, facts), strict=True):
            grey = np.kron(enlarged(record) * 15, np.ones((6, 6), np.uint8))
            yield f"{measure['digit']}, taken for {measure['found']}", np.repeat(grey[..., None], 3, axis=2)


def classifier(num_classes: int) -> nn.Module:
    """uint8 [batch, 16, 16], levels 0 to 16, to logits."""
    import torch
    from torch import nn

    class Scaled(nn.Module):
        """Levels 0 to 16 as numbers 0 to 1, in whatever precision the network has."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Buffer(torch.tensor(1 / 16))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.unsqueeze(1).to(self.scale.dtype) * self.scale

    return nn.Sequential(
        Scaled(),
        *(nn.Conv2d(1, 24, 3, padding=1), nn.SiLU()),
        *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.Conv2d(48, 48, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(48 * 16, num_classes)),
    )


def enlarged(record: Record) -> np.ndarray:
    """uint8 [16, 16], levels 0 to 16."""
    return np.kron(np.array(record.inputs["pixels"], np.uint8).reshape(8, 8), np.ones((2, 2), np.uint8))


def write_project(folder: Path, classes: Sequence[str] = tuple("0123456789")) -> None:
    """A project's folder after the stages parse and train: params.yaml, records and trained weights."""
    import torch
    from safetensors.torch import save_file

    (folder / "params.yaml").write_text(f"{NAME}: {{}}\n")
    records = list(digit_records())
    parse = folder / "data" / "parse" / NAME
    write_records(parse, records, inputs=schema()[0], targets=schema()[1], shares=(1, 0, 0))
    model = folder / "data" / "train" / NAME / "model"
    model.mkdir(parents=True)
    facts = {"classes": list(classes), "comparable": ["classes"], "num_records": len(records)}
    (parse / "facts.json").write_text(json.dumps(facts))
    (model / "spec.json").write_text(json.dumps(spec(facts)))
    torch.manual_seed(0)
    network = classifier(10)
    fit(network, [record for record in records if record.split == "train"])
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, model / "weights.safetensors")


def schema() -> tuple[Any, Any]:
    import pyarrow as pa

    return pa.struct([("pixels", pa.list_(pa.uint8()))]), pa.struct([("digit", pa.int32())])


def digit_records() -> Iterator[Record]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    for split, numbers in SPLITS.items():
        for number in numbers:
            pixels = digits.images[number].astype(np.uint8).ravel().tolist()
            yield Record(f"digit-{number}", "", {"pixels": pixels}, {"digit": int(digits.target[number])}, split)


def spec(facts: dict[str, Any]) -> dict[str, Any]:
    plan = {
        "backend": "single",
        "device": "cpu",
        "ranks": 1,
        "micro_batch": 16,
        "accumulation": 1,
        "threads": 1,
        "workers": 0,
        "prefetch": 1,
        "precision": "fp32",
        "reasons": {"backend": "one device"},
    }
    places = {"records": f"data/parse/{NAME}/records.arrow", "root": "raw", "output": "out"}
    return {"workload": NAME, "settings": {}, "facts": facts, **places, "plan": plan, "fingerprint": "f" * 32}


def fit(network: nn.Module, records: Sequence[Record]) -> None:
    """A few seconds of training, the same every time."""
    import torch

    pixels = torch.from_numpy(np.stack([enlarged(record) for record in records]))
    targets = torch.tensor([record.targets["digit"] for record in records])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for rows in torch.randperm(len(records), generator=generator).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(pixels[rows]), targets[rows]).backward()
            optimizer.step()
