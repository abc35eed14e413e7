"""Algorithm distillation: a transformer that imitates how others learn, and then learns in its context with frozen weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.raw import RawInput, RawKind
from contracts.workload import Dataset, Facts, Graph, Measure, Metric, Prediction, Run, Scores
from workloads.algorithm_distillation.settings import DistillationSettings, HistoryDownload

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import nn

    from contracts.records import Record, Records, Rejected
    from contracts.settings import Source


class AlgorithmDistillation:
    """See `contracts.workload.Workload` for what each method promises."""

    Settings = DistillationSettings
    metric = Metric("return_of_optimum")
    raw = RawKind("tasks", frozenset({".json"}))

    def sources(self, settings: DistillationSettings) -> Sequence[Source]:
        return settings.download.sources

    def collect(self, raw: Path, settings: DistillationSettings, store: Path) -> None:
        from workloads.algorithm_distillation.collecting import collect

        collect(raw, settings.download, store)

    def check(self, raw: Path, settings: DistillationSettings) -> None:
        from workloads.algorithm_distillation.collecting import check

        check(raw, settings.download)

    def sample(self, raw: Path, num: int) -> None:
        from tempfile import TemporaryDirectory

        from workloads.algorithm_distillation.collecting import collect

        with TemporaryDirectory() as store:
            collect(raw, HistoryDownload(num_samples=num), Path(store))

    def schema(self) -> tuple[pa.DataType, pa.DataType]:
        from workloads.algorithm_distillation.parsing import schema

        return schema()

    def parse(self, raw: Path, settings: DistillationSettings, *, processes: int) -> Iterator[Record | Rejected]:
        from workloads.algorithm_distillation.parsing import parse

        return parse(raw, settings.parse)

    def facts(self, raw: Path, records: Records, settings: DistillationSettings) -> dict[str, Any]:
        from workloads.algorithm_distillation.parsing import facts

        return facts(raw, records, settings.parse)

    def prepare(self, records: Records, settings: DistillationSettings, facts: Facts, folder: Path) -> dict[str, Any]:
        return {}

    def dataset(self, records: Records, settings: DistillationSettings, facts: Facts, *, training: bool) -> Dataset:
        from workloads.algorithm_distillation.dataset import HistoryDataset

        return HistoryDataset(records, facts)

    def build(self, settings: DistillationSettings, facts: Facts, *, pretrained: bool) -> nn.Module:
        from workloads.algorithm_distillation.objective import build

        return build(settings, facts)

    def optimizer(self, objective: nn.Module, settings: DistillationSettings) -> Any:
        from workloads.algorithm_distillation.objective import make_optimizer

        return make_optimizer(objective, settings.train)

    def graphs(self, objective: nn.Module, settings: DistillationSettings, facts: Facts) -> dict[str, Graph]:
        from workloads.algorithm_distillation.graph import graphs

        return graphs(objective.learner, settings.train, facts)  # pyright: ignore[reportArgumentType]

    def save(self, objective: nn.Module, folder: Path, settings: DistillationSettings, facts: Facts, *, name: str) -> None:
        from workloads.algorithm_distillation.saving import save

        save(objective.learner, folder, settings.train, facts, name=name)  # pyright: ignore[reportArgumentType]

    def measure(self, run: Run, records: Records, settings: DistillationSettings, facts: Facts) -> Iterator[Measure]:
        from workloads.algorithm_distillation.predicting import measure

        return measure(run, records, settings, facts)

    def score(self, measures: Iterable[Measure], settings: DistillationSettings, facts: Facts) -> Scores:
        from workloads.algorithm_distillation.scoring import score

        return score(measures, settings.evaluate, window=settings.train.window)

    def gallery(
        self, run: Run, records: Records, settings: DistillationSettings, facts: Facts
    ) -> Iterator[tuple[str, np.ndarray]]:
        from workloads.algorithm_distillation.predicting import gallery

        return gallery(run, records, settings, facts)

    def predict(
        self, run: Run, inputs: Iterable[RawInput], settings: DistillationSettings, facts: Facts
    ) -> Iterator[Prediction]:
        from workloads.algorithm_distillation.predicting import predict

        return predict(run, inputs, settings, facts)

    def raw_input(self, record: Record, root: Path) -> RawInput:
        from workloads.algorithm_distillation.histories import Histories
        from workloads.algorithm_distillation.predicting import written

        return RawInput(f"{record.key}.json", written(Histories(root).index["environment"], [record.inputs["task"]]))

    def rollouts(
        self, run: Run, names: Sequence[str], settings: DistillationSettings, facts: Facts, *, times: int, seed: int
    ) -> Iterator[Prediction]:
        """What `slipway rollout` shows: so many rollouts on each task of these names, or on the hardest one held out."""
        from workloads.algorithm_distillation.predicting import rollouts

        return rollouts(run, names, settings, facts, times=times, seed=seed)

    def quality(self, records: Records, settings: DistillationSettings, facts: Facts, folder: Path) -> dict[str, Any]:
        from workloads.algorithm_distillation.quality import quality

        return quality(records, folder)


WORKLOAD = AlgorithmDistillation()
