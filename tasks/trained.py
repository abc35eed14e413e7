"""A trained model as the later stages need it: its workload, settings, data and weights, read from the folders of `parse` and `train`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from contracts import workload as workloads
from contracts.errors import SlipwayError
from contracts.progress import track
from contracts.records import Records
from contracts.run import RunSpec
from contracts.settings import Settings, validate
from contracts.workload import Facts, Graph, HasLayout, Layout, Measure, Run, Scores, Workload
from tasks.stage import folder

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Trained:
    """What `train` left for a workload, opened without torch; the weights are read when `objective` is asked for.

    `settings` are those of params.yaml, but for the part `train`: that one is what the weights were trained with.
    """

    name: str
    workload: Workload
    settings: Settings
    facts: Facts
    records: Records

    @classmethod
    def open(cls, name: str) -> Trained:
        """The trained model of the workload `name`.

        Raises:
            SlipwayError: when it has not been trained, or its records are missing.
        """
        path = folder("train", name) / "model" / "spec.json"
        if not path.is_file():
            raise SlipwayError(f"{path} is missing: run the train stage first (dvc repro, or python -m tasks.train {name})")
        spec, workload = RunSpec.read(path), workloads.load(name)
        trained_with = validate(workload.Settings, spec.settings, where=f"{path}: settings")
        settings = workloads.settings_of(name).model_copy(update={"train": trained_with.train})
        records = Records.open(folder("parse", name), root=folder("download", name) / "raw")
        return cls(name, workload, settings, spec.facts, records)

    @cached_property
    def objective(self) -> nn.Module:
        """The objective with its best weights, on the CPU, in eval mode.

        Raises:
            SlipwayError: when the weights are missing or are not those of this network, with the names that differ.
        """
        from engine.weights import rebuilt

        path = folder("train", self.name) / "model" / "weights.safetensors"
        if not path.is_file():
            raise SlipwayError(f"{path} is missing: run the train stage first (python -m tasks.train {self.name})")
        try:
            return rebuilt(self.workload, self.settings, self.facts, path).eval()
        except ValueError as error:
            raise SlipwayError(f"{path} does not fit the network that its spec.json describes: {error}") from None

    def untrained_graphs(self) -> dict[str, Graph]:
        """The parts that would ship without any training: base models and fresh layers as the first step found them."""
        import torch

        torch.manual_seed(self.settings.train.seed)
        objective = self.workload.build(self.settings, self.facts, pretrained=True)
        return self.workload.graphs(objective.eval(), self.settings, self.facts)

    def graphs(self) -> dict[str, Graph]:
        """The parts that ship, as torch modules with the trained weights."""
        return self.workload.graphs(self.objective, self.settings, self.facts)

    def layout(self) -> Layout | None:
        """The same as other tools' runtimes expect it, where the workload knows of any."""
        if not isinstance(self.workload, HasLayout):
            return None
        return self.workload.layout(self.objective, self.settings, self.facts)

    def split(self, name: str, *, why: str) -> Records:
        """The records of a split.

        Raises:
            SlipwayError: when it is empty; `why` says what needs it.
        """
        records = self.records.split(name)
        if not len(records):
            raise SlipwayError(
                f"the {name} split of {self.name} has no records, and {why} needs some: give it a share in {self.name}.parse.shares "
                "of params.yaml, or add examples to that split of the data set"
            )
        return records

    def measure(self, run: Run, records: Records) -> Iterator[Measure]:
        """What the workload measures of each record when `run` computes its graphs."""
        return self.workload.measure(run, records, self.settings, self.facts)

    def score(self, run: Run, records: Records, title: str) -> tuple[Scores, list[Measure]]:
        """The scores of `records` and the measures they were made of, with progress shown under `title`."""
        measures = list(track(self.measure(run, records), title, total=len(records)))
        return self.workload.score(measures, self.settings, self.facts), measures

    def metrics(self, run: Run, records: Records, title: str) -> dict[str, float]:
        """All that the workload counts of `records`, by name."""
        return {name: float(value) for name, value in self.score(run, records, title)[0].metrics.items()}

    def metric(self, run: Run, records: Records, title: str) -> float:
        """The workload's one number for `records`."""
        return self.metrics(run, records, title)[self.workload.metric.name]


def plain(value: Any) -> Any:
    """The same nested value with NumPy's arrays and numbers as Python's, for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
