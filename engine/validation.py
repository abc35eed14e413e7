"""Scoring during training: every rank measures its share of a split, rank 0 scores the whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from contracts.records import Records
from contracts.settings import Settings
from contracts.workload import Facts, HasShortcut, Measure, Scores, Workload
from engine.backends.single import Single
from engine.beacon import SCORING, mark
from engine.parts import load_weights
from engine.torch_runtime import torch_run
from engine.weights import frozen_bases


class Validator:
    """Scores weights on one split through the graphs that would ship, but for work that `prepare` did for all of them."""

    def __init__(self, workload: Workload, objective: nn.Module, settings: Settings, facts: Facts, records: Records) -> None:
        self.workload, self.settings, self.facts, self.records = workload, settings, facts, records
        self.not_saved = frozen_bases(workload, objective)
        self.objective = copy.deepcopy(objective).eval().requires_grad_(False)

    def score(self, tensors: Mapping[str, torch.Tensor], backend: Single) -> dict[str, float]:
        """The metrics of these weights (of all that trains), the same on every rank."""
        mark("validating", keys=[])
        load_weights(self.objective, tensors)
        share = self.records.take(range(backend.rank, len(self.records), backend.ranks))
        measures = []
        for count, measure in enumerate(self.measure(share, backend.device), 1):
            mark("validating", keys=[f"record {count} of {len(share)}"])
            measures.append(measure)
        gathered = backend.gather(measures)
        scores = self._scored(_interleaved(gathered)) if gathered else Scores({})
        return backend.broadcast(dict(scores.metrics))

    def _scored(self, measures: list[Measure]) -> Scores:
        """What the workload makes of the measures of the whole split, while the other ranks wait."""
        mark(SCORING, keys=[])
        scores = self.workload.score(measures, self.settings, self.facts)
        mark("validating")
        return scores

    def measure(self, records: Records, device: torch.device) -> Iterator[Measure]:
        """What the workload measures of records by the weights that were loaded last, through its shortcut where it has one."""
        workload, settings, facts = self.workload, self.settings, self.facts
        short = workload.shortcut(self.objective, settings, facts) if isinstance(workload, HasShortcut) else None
        if short:
            return short.measure(torch_run(short.graphs, device), records)
        run = torch_run(workload.graphs(self.objective, settings, facts), device)
        return workload.measure(run, records, settings, facts)

    def learnt(self) -> dict[str, torch.Tensor]:
        """The weights that were scored last, without those of frozen base models."""
        return {name: value for name, value in self.objective.state_dict().items() if name not in self.not_saved}


def _interleaved(shares: list[list[Any]]) -> list[Any]:
    """The measures in the order of their records: share r holds records r, r + ranks, ..."""
    together: list[Any] = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        together[rank :: len(shares)] = share
    return together
