"""Whether exported graphs compute what torch computes: every output on real records, at several batch sizes, and the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import SlipwayError
from contracts.records import Records
from contracts.workload import Arrays, Graph, Layout, Run
from tasks.shipping.latency import one_torch_thread
from tasks.shipping.recording import Call, calls, spread
from tasks.trained import Trained

NUM_RECORDS = 64
NUM_METRIC_RECORDS = 500
BATCH_SIZES = (1, 2, 5)
# A channel that hardly varies is judged by this share of the whole output's range.
SMALLEST_SHARE = 1e-3
# Two equal scores may swap places in a ranking, so the metric is allowed a little of its own.
METRIC_TOLERANCE = 2e-3


@dataclass
class Deviation:
    """How far one output is from torch's: channel by channel (axis 1), so that scores are not excused by the range of the
    boxes, or, where other axes than the batch vary, as a whole."""

    by_channel: bool
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    errors: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, key: str, expected: np.ndarray, found: np.ndarray) -> None:
        """Take in the same output for the record `key` from torch and from the file."""
        error = self.channels(np.abs(found.astype(np.float64) - expected))
        expected = self.channels(expected)
        low, high = expected.min(1), expected.max(1)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        worst = np.where(np.isnan(error).any(1), np.inf, error.max(1))
        self.errors[key] = np.maximum(worst, self.errors.get(key, 0.0))

    def worst(self) -> tuple[float, str, float]:
        """The largest error relative to its channel's range, the record it belongs to, and the error itself."""
        assert self.low is not None and self.high is not None
        spans = self.high - self.low
        spans = np.maximum(spans, max(SMALLEST_SHARE * float(self.high.max() - self.low.min()), 1e-12))
        ranked = {key: error / spans for key, error in self.errors.items()}
        key = max(ranked, key=lambda name: float(ranked[name].max()))
        return float(ranked[key].max()), key, float(self.errors[key][ranked[key].argmax()])

    def channels(self, values: np.ndarray) -> np.ndarray:
        """[batch, channels, ...] as [channels, everything else]."""
        if values.ndim < 3 or not self.by_channel:
            return values.reshape(1, -1)
        return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


def check_parity(trained: Trained, graphs: Mapping[str, Graph], artifact: Path) -> dict[str, Any]:
    """Compare the artifact in a folder with torch; parity.json's content.

    Raises:
        SlipwayError: beyond `export.tolerance`, naming graph, output, record and values.
    """
    from engine.torch_runtime import torch_run
    from serving.runtime import open_run

    torch_graphs, files = torch_run(graphs, "cpu"), open_run(artifact)
    split = next((name for name in ("val", "test") if len(trained.records.split(name))), "train")
    records = spread(trained.records.split(split), NUM_RECORDS)
    heard: list[Call] = []
    deviations: dict[tuple[str, str], Deviation] = {}
    with one_torch_thread():  # single records: several threads cost more than they give, much more on a busy machine
        for call in calls(trained, torch_graphs, records):
            compare(deviations, call.key, call.graph, graphs[call.graph], call.outputs, files(call.graph, **call.inputs))
            if sum(one.graph == call.graph for one in heard) < max(BATCH_SIZES):
                heard.append(call)
    tolerance = trained.settings.export.tolerance
    outputs = [judge(graph, output, deviation, tolerance) for (graph, output), deviation in deviations.items()]
    batches = [
        row for name, graph in graphs.items() for row in at_batch_sizes(name, graph, heard, torch_graphs, files, tolerance)
    ]
    return {
        "passed": True,
        "worst": max(row["worst"] for row in [*outputs, *batches]),
        "tolerance": tolerance,
        "split": split,
        "num_records": len(records),
        "outputs": outputs,
        "batches": batches,
        "metric": same_metric(trained, torch_graphs, files, split),
    }


def compare(
    deviations: dict[tuple[str, str], Deviation], key: str, name: str, graph: Graph, expected: Arrays, found: Arrays
) -> None:
    """Take in one call's outputs.

    Raises:
        SlipwayError: when an output has another shape than torch's.
    """
    by_channel = not any(axis for varying in graph.dynamic.values() for axis in varying)
    for output, value in expected.items():
        if found[output].shape != value.shape:
            raise SlipwayError(
                f"export refused: output {output!r} of graph {name!r} has shape {list(found[output].shape)} for record {key!r}; "
                f"torch gives {list(value.shape)}"
            )
        deviations.setdefault((name, output), Deviation(by_channel)).add(key, value, found[output])


def judge(graph: str, output: str, deviation: Deviation, tolerance: float) -> dict[str, Any]:
    """An output's row of parity.json; a SlipwayError beyond the tolerance."""
    worst, key, error = deviation.worst()
    if not worst <= tolerance:
        raise SlipwayError(
            f"export refused: output {output!r} of graph {graph!r} differs from torch by {error:.4g} for record {key!r}, which is "
            f"{worst:.3g} of its range; export.tolerance allows {tolerance:g}. Another export.opset, or another onnxruntime, may "
            "compute it right; raise the tolerance only if you know why they differ"
        )
    return {"graph": graph, "output": output, "worst": worst, "error": error, "record": key}


def at_batch_sizes(
    name: str, graph: Graph, heard: Sequence[Call], torch_graphs: Run, files: Run, tolerance: float
) -> list[dict[str, Any]]:
    """The comparison at several batch sizes, for a graph whose inputs all vary along axis 0; rows of parity.json."""
    mine = [call.inputs for call in heard if call.graph == name]
    same = [one for one in mine if all(one[key].shape[1:] == mine[0][key].shape[1:] for key in one)]
    if not same or not all(0 in graph.dynamic.get(key, {}) for key in graph.inputs):
        return []
    rows = {key: np.concatenate([one[key] for one in same]) for key in graph.inputs}
    found = []
    for size in BATCH_SIZES:
        batch = {key: np.resize(value, (size, *value.shape[1:])) for key, value in rows.items()}
        deviations: dict[tuple[str, str], Deviation] = {}
        compare(deviations, f"a batch of {size}", name, graph, torch_graphs(name, **batch), files(name, **batch))
        worst = max(judge(name, output, deviation, tolerance)["worst"] for (_, output), deviation in deviations.items())
        found.append({"graph": name, "batch": size, "worst": worst})
    return found


def same_metric(trained: Trained, torch_graphs: Run, files: Run, split: str) -> dict[str, Any]:
    """The workload's metric by torch and by the files, on the same records.

    Raises:
        SlipwayError: when they differ.
    """
    records: Records = spread(trained.records.split(split), NUM_METRIC_RECORDS)
    torch_value = trained.metric(torch_graphs, records, "checking the metric, torch")
    onnx_value = trained.metric(files, records, "checking the metric, ONNX")
    name = trained.workload.metric.name
    refuse_if_different(name, split, onnx_value, torch_value, of="the ONNX files")
    return {"name": name, "split": split, "num_records": len(records), "torch": torch_value, "onnx": onnx_value}


def check_layout(trained: Trained, layout: Layout, files: Run, metric: Mapping[str, Any]) -> dict[str, Any]:
    """The workload's metric by the files of a layout, called as other tools call them, on the records of `metric`.

    Raises:
        SlipwayError: when it is not torch's, which stands in `metric`.
    """
    records = spread(trained.records.split(metric["split"]), NUM_METRIC_RECORDS)
    value = trained.metric(layout.own(files), records, "checking the metric, other tools' layout")
    refuse_if_different(metric["name"], metric["split"], value, metric["torch"], of=f"the files {', '.join(layout.graphs)}")
    return {**metric, "onnx": value, "files": [f"{name}.onnx" for name in layout.graphs]}


def refuse_if_different(metric: str, split: str, value: float, torch_value: float, *, of: str) -> None:
    """Raises:
    SlipwayError: when the `value` of some files is not torch's.
    """
    if not abs(torch_value - value) <= METRIC_TOLERANCE * max(1.0, abs(torch_value)):
        raise SlipwayError(f"export refused: {metric} on {split} is {value:.4f} for {of} and {torch_value:.4f} for torch")
