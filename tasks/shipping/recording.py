"""What a workload really feeds to its graphs, overheard while it measures: inputs for parity, calibration and timing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from contracts.records import Records
from contracts.workload import Arrays, Run
from tasks.trained import Trained


@dataclass(frozen=True)
class Call:
    """One call of a graph: what went in and what came out. `key` is the record it was made for."""

    key: str
    graph: str
    inputs: Arrays
    outputs: Arrays


def calls(trained: Trained, run: Run, records: Records) -> Iterator[Call]:
    """Every call of a graph that measuring `records` makes, in order. Memory: the calls of one record."""
    for index in range(len(records)):
        heard: list[tuple[str, Arrays, Arrays]] = []

        def listening(graph: str, /, heard: list[tuple[str, Arrays, Arrays]] = heard, **inputs: np.ndarray) -> Arrays:
            outputs = run(graph, **inputs)
            heard.append((graph, inputs, outputs))
            return outputs

        for _ in trained.measure(listening, records.take([index])):
            pass
        key = records[index].key
        for graph, inputs, outputs in heard:
            yield Call(key, graph, inputs, outputs)


def spread(records: Records, num: int) -> Records:
    """`num` of the records (or all), evenly spread over their order, the same ones every time."""
    if len(records) <= num:
        return records
    return records.take(np.linspace(0, len(records) - 1, num).round().astype(np.int64))
