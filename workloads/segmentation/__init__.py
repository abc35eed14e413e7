"""Instance segmentation with Ultralytics' YOLO models: polygons in, masks out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.pictures import PICTURES
from contracts.raw import RawInput
from contracts.workload import Card, Dataset, Facts, Graph, Measure, Metric, Prediction, Run, Scores
from workloads.segmentation.settings import SegmentationSettings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import nn

    from contracts.records import Record, Records, Rejected
    from contracts.settings import Source


class Segmentation:
    """See `contracts.workload.Workload` for what each method promises."""

    Settings = SegmentationSettings
    metric = Metric("mask_map50_95")
    raw = PICTURES

    def sources(self, settings: SegmentationSettings) -> Sequence[Source]:
        return settings.download.sources

    def sample(self, raw: Path, num: int) -> None:
        from workloads.segmentation.scenes import write_scenes

        write_scenes(raw, num)

    def schema(self) -> tuple[pa.DataType, pa.DataType]:
        from workloads.segmentation.labels import schema

        return schema()

    def parse(self, raw: Path, settings: SegmentationSettings, *, processes: int) -> Iterator[Record | Rejected]:
        from workloads.segmentation.labels import parse

        return parse(raw, settings.parse, processes=processes)

    def facts(self, raw: Path, records: Records, settings: SegmentationSettings) -> dict[str, Any]:
        from workloads.segmentation.labels import facts

        return facts(raw, records, settings.parse)

    def prepare(self, records: Records, settings: SegmentationSettings, facts: Facts, folder: Path) -> dict[str, Any]:
        return {}  # every part of the network is trained, and every picture is varied

    def dataset(self, records: Records, settings: SegmentationSettings, facts: Facts, *, training: bool) -> Dataset:
        from workloads.segmentation.dataset import SegmentationDataset

        return SegmentationDataset(records, settings.train, facts["classes"], training=training)

    def build(self, settings: SegmentationSettings, facts: Facts, *, pretrained: bool) -> nn.Module:
        from workloads.segmentation.objective import build

        return build(settings.train, facts["classes"], pretrained=pretrained)

    def optimizer(self, objective: nn.Module, settings: SegmentationSettings) -> Any:
        from workloads.segmentation.objective import make_optimizer

        return make_optimizer(objective, settings.train)

    def graphs(self, objective: nn.Module, settings: SegmentationSettings, facts: Facts) -> dict[str, Graph]:
        from workloads.segmentation.graph import graphs

        return graphs(objective, settings.train)

    def save(self, objective: nn.Module, folder: Path, settings: SegmentationSettings, facts: Facts, *, name: str) -> None:
        from workloads.segmentation.objective import save

        save(objective, folder / f"{name}.pt", settings.train, facts["classes"])

    def card(self, settings: SegmentationSettings, facts: Facts) -> Card:
        """Ultralytics holds that what was trained with its code is under its licence: docs/decisions/005-licence.md."""
        use = '`best.pt` opens with Ultralytics: `YOLO("best.pt")`.'
        return Card(license="agpl-3.0", library="ultralytics", task="image-segmentation", use=use)

    def measure(self, run: Run, records: Records, settings: SegmentationSettings, facts: Facts) -> Iterator[Measure]:
        from workloads.segmentation.scoring import measure

        return measure(run, records, settings, facts["classes"])

    def score(self, measures: Iterable[Measure], settings: SegmentationSettings, facts: Facts) -> Scores:
        from workloads.segmentation.scoring import score

        return score(measures, facts["classes"])

    def gallery(
        self, run: Run, records: Records, settings: SegmentationSettings, facts: Facts
    ) -> Iterator[tuple[str, np.ndarray]]:
        from workloads.segmentation.predicting import gallery

        return gallery(run, records, settings, facts["classes"])

    def predict(
        self, run: Run, inputs: Iterable[RawInput], settings: SegmentationSettings, facts: Facts
    ) -> Iterator[Prediction]:
        from workloads.segmentation.predicting import predict

        return predict(run, inputs, settings, facts["classes"])

    def raw_input(self, record: Record, root: Path) -> RawInput:
        return RawInput(record.key, root / record.inputs["image"])


WORKLOAD = Segmentation()
