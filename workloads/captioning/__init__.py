"""Captioning: a frozen vision encoder, a prefix, and a small language model with LoRA; pictures in, sentences out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.pictures import PICTURES
from contracts.raw import RawInput
from contracts.workload import Card, Dataset, Facts, Graph, Layout, Measure, Metric, Prediction, Run, Scores, Shortcut, Told
from workloads.captioning.settings import CaptioningSettings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import nn

    from contracts.records import Record, Records, Rejected
    from contracts.settings import Source


class Captioning:
    """See `contracts.workload.Workload` for what each method promises."""

    Settings = CaptioningSettings
    metric = Metric("cider")
    raw = PICTURES

    def sources(self, settings: CaptioningSettings) -> Sequence[Source]:
        return settings.download.sources

    def sample(self, raw: Path, num: int) -> None:
        from workloads.captioning.scenes import write_scenes

        write_scenes(raw, num)

    def schema(self) -> tuple[pa.DataType, pa.DataType]:
        from workloads.captioning.labels import schema

        return schema()

    def parse(self, raw: Path, settings: CaptioningSettings, *, processes: int) -> Iterator[Record | Rejected]:
        from workloads.captioning.labels import parse

        return parse(raw, settings.parse, processes=processes)

    def facts(self, raw: Path, records: Records, settings: CaptioningSettings) -> dict[str, Any]:
        from workloads.captioning.labels import facts

        return facts(raw, records, settings.parse)

    def prepare(self, records: Records, settings: CaptioningSettings, facts: Facts, folder: Path) -> dict[str, Any]:
        from workloads.captioning.base import captions_of
        from workloads.captioning.bases import describe, not_pretrained, on_the_hub
        from workloads.captioning.features import Features, keeps_features
        from workloads.captioning.words import Words, cut

        captions = captions_of(records.split("train"))
        found = describe(settings.prepare, folder, captions=None if facts["embedded"] else captions)
        for part in ("encoder", "decoder"):
            if on_the_hub(found[part]):
                print(f"{part} {found[part]['name']} at commit {found[part]['revision']}, which the stages after keep to")
        found["caption_tokens"] = Words(found["tokenizer"]).counted(captions)
        if warning := cut(found["caption_tokens"], longest=settings.train.longest):
            print(f"warning: {warning}", file=sys.stderr)
        if warning := not_pretrained(found):
            print(f"warning: {warning}", file=sys.stderr)
        if "not_llava" in found:
            print(f"warning: no folder transformers/ will be published: {found['not_llava']}", file=sys.stderr)
        features, batch_size = Features.of(found, folder), settings.prepare.batch_size
        if keeps_features(settings):
            new = features.compute(records, found, batch_size=batch_size)
            print(f"features of {len(features):,} pictures, {new:,} of them new")
        found["features"] = features.moments(records.split("train"), found, batch_size=batch_size)
        return found

    def dataset(self, records: Records, settings: CaptioningSettings, facts: Facts, *, training: bool) -> Dataset:
        from workloads.captioning.dataset import CaptioningDataset

        return CaptioningDataset(records, settings, facts, training=training)

    def build(self, settings: CaptioningSettings, facts: Facts, *, pretrained: bool) -> nn.Module:
        from workloads.captioning.objective import build

        return build(settings, facts, pretrained=pretrained)

    def bases(self) -> Sequence[str]:
        return ("captioner.encoder", "captioner.decoder")

    def optimizer(self, objective: nn.Module, settings: CaptioningSettings) -> Any:
        from workloads.captioning.objective import make_optimizer

        return make_optimizer(objective, settings.train)

    def graphs(self, objective: nn.Module, settings: CaptioningSettings, facts: Facts) -> dict[str, Graph]:
        from workloads.captioning.graph import graphs

        return graphs(objective.captioner, facts)  # pyright: ignore[reportArgumentType]

    def layout(self, objective: nn.Module, settings: CaptioningSettings, facts: Facts) -> Layout | None:
        from workloads.captioning.layout import layout

        return layout(objective.captioner, facts)  # pyright: ignore[reportArgumentType]

    def save(self, objective: nn.Module, folder: Path, settings: CaptioningSettings, facts: Facts, *, name: str) -> None:
        from workloads.captioning.saving import save

        save(objective.captioner, folder, facts, name=name)  # pyright: ignore[reportArgumentType]

    def card(self, settings: CaptioningSettings, facts: Facts) -> Card:
        from workloads.captioning.presenting import card

        return card(settings, facts)

    def measure(self, run: Run, records: Records, settings: CaptioningSettings, facts: Facts) -> Iterator[Measure]:
        from workloads.captioning.predicting import measure

        return measure(run, records, settings, facts)

    def shortcut(self, objective: nn.Module, settings: CaptioningSettings, facts: Facts) -> Shortcut | None:
        from workloads.captioning.validating import shortcut

        return shortcut(objective.captioner, settings, facts)  # pyright: ignore[reportArgumentType]

    def score(self, measures: Iterable[Measure], settings: CaptioningSettings, facts: Facts) -> Scores:
        from workloads.captioning.scoring import score

        return score(measures, settings, facts)

    def gallery(
        self, run: Run, records: Records, settings: CaptioningSettings, facts: Facts
    ) -> Iterator[tuple[str, np.ndarray]]:
        from workloads.captioning.predicting import gallery

        return gallery(run, records, settings, facts)

    def tell(self, run: Run, records: Records, settings: CaptioningSettings, facts: Facts) -> Iterator[Told]:
        from workloads.captioning.predicting import tell

        return tell(run, records, settings, facts)

    def predict(
        self, run: Run, inputs: Iterable[RawInput], settings: CaptioningSettings, facts: Facts
    ) -> Iterator[Prediction]:
        from workloads.captioning.predicting import predict

        return predict(run, inputs, settings, facts)

    def raw_input(self, record: Record, root: Path) -> RawInput:
        from workloads.captioning.pictures import content

        return RawInput(record.key, content(root, record.inputs))

    def balance(self, records: Records, settings: CaptioningSettings) -> np.ndarray:
        from workloads.captioning.quality import weights

        return weights(records)

    def quality(self, records: Records, settings: CaptioningSettings, facts: Facts, folder: Path) -> dict[str, Any]:
        from workloads.captioning.quality import quality

        return quality(records, settings, facts, folder)


WORKLOAD = Captioning()
