"""From histories to records: one for each learner, its task the group, held-out tasks stratified by how far their goals are."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import DataRefused, SlipwayError
from contracts.records import Record, Records, Rejected
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.histories import Histories
from workloads.algorithm_distillation.moments import returns
from workloads.algorithm_distillation.quality import look
from workloads.algorithm_distillation.settings import HistoryParse
from workloads.algorithm_distillation.splitting import split_tasks, told

if TYPE_CHECKING:
    import pyarrow as pa

# The facts that models must share to be scored beside each other.
COMPARABLE = ["environment", "episodes", "held_out"]


def schema() -> tuple[pa.DataType, pa.DataType]:
    """Inputs: the part and the row of the history, the task and the learner. Targets: the source's return in each episode."""
    import pyarrow as pa

    row = [("part", pa.string()), ("row", pa.int32()), ("task", pa.list_(pa.int16())), ("learner", pa.int32())]
    return pa.struct(row), pa.struct([("returns", pa.list_(pa.int16()))])


def parse(raw: Path, settings: HistoryParse) -> Iterator[Record | Rejected]:
    """A record for each history; of a held-out task only for the first learners, as many as `rollouts` says.

    Raises:
        SlipwayError: when there are no histories, or their environment is not known here.
    """
    histories = Histories(raw)
    for name, reason in histories.unusable.items():
        yield Rejected(name.partition(":")[0], name.partition(":")[2], "", reason, whole=True)
    environment = ENVIRONMENTS.get(histories.index["environment"])
    if environment is None:
        known = ", ".join(ENVIRONMENTS)
        raise SlipwayError(
            f"{raw}: histories of {histories.index['environment']!r}, which is not known here; known: {known}"
        )
    if not histories.index["parts"]:
        return
    tasks = np.array(histories.index["tasks"])
    present = sorted({row.task for part in histories.index["parts"] for row in histories.rows(part)})
    splits = dict(
        zip(present, split_tasks(environment.difficulty(tasks[present]), settings.shares, seed=settings.seed), strict=True)
    )
    for part in histories.index["parts"]:
        found = returns(histories.array(part))
        for row in histories.rows(part):
            split = splits[row.task]
            if split != "train" and row.learner >= settings.rollouts:
                continue
            task = tasks[row.task].tolist()
            name = f"{environment.name}/{'-'.join(map(str, task))}"
            inputs = {"part": part, "row": row.row, "task": task, "learner": row.learner}
            yield Record(f"{name}/{row.learner}", name, inputs, {"returns": found[row.row].tolist()}, split)


def facts(raw: Path, records: Records, settings: HistoryParse) -> dict[str, Any]:
    """What the histories are of; `histories` names their bytes, so that other histories are another run, and `held_out` the tasks
    that are not trained on, so that no model is scored on what it learnt. `splits` has them all, for people.

    Raises:
        DataRefused: when there is nothing in them to distil.
    """
    found, histories = look(records), Histories(raw)
    findings = [*found.findings, *scarcity(records, settings.rollouts)]
    for line in findings:
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
    if found.fault:
        raise DataRefused(found.fault)
    digest = hashlib.blake2b(digest_size=16)
    for part in histories.index["parts"]:
        digest.update(np.ascontiguousarray(histories.array(part)).data)
    described = {name: histories.index[name] for name in ("environment", "source", "episodes", "noise")}
    splits, inputs = (records.table[name].to_pylist() for name in ("split", "inputs"))
    tasks = told((split, one["task"]) for split, one in zip(splits, inputs, strict=True))
    described |= {"histories": digest.hexdigest(), "held_out": held_out(records), "splits": tasks}
    return {**described, "comparable": COMPARABLE, "findings": findings}


def scarcity(records: Records, rollouts: int) -> list[str]:
    """What is to be said where held-out tasks have fewer learners than there should be rollouts: nothing, or a sentence."""
    splits, groups = (records.table[name].to_pylist() for name in ("split", "group"))
    num = Counter(group for split, group in zip(splits, groups, strict=True) if split != "train")
    few = [one for one in num.values() if one < rollouts]
    if not few:
        return []
    return [
        f"note: {len(few)} of the {len(num)} held-out tasks have fewer learners ({min(few)}) than parse.rollouts = {rollouts}, and no "
        "more rollouts of the model: collect more histories (download.num_samples), or of fewer tasks (download.num_tasks)"
    ]


def held_out(records: Records) -> str:
    """Names the tasks of val and test, each with its split."""
    columns = (records.table[name].to_pylist() for name in ("split", "group"))
    tasks = sorted({(split, group) for split, group in zip(*columns, strict=True) if split != "train"})
    return hashlib.blake2b(json.dumps(tasks).encode(), digest_size=8).hexdigest()
