"""Rollouts on held-out tasks, measured, drawn, and on request for tasks of one's own. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contracts.errors import SlipwayError
from contracts.raw import RawInput
from contracts.records import Records
from contracts.workload import Facts, Measure, Run
from workloads.algorithm_distillation.drawing import film, picture
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.environments.room import Room
from workloads.algorithm_distillation.histories import Histories
from workloads.algorithm_distillation.moments import ACTION, returns
from workloads.algorithm_distillation.rolling import imitated, play, random_returns
from workloads.algorithm_distillation.settings import DistillationSettings
from workloads.algorithm_distillation.splitting import held_out_of, split_of
from workloads.algorithm_distillation.splitting import written as written_task

# What a user is told of a task, by the split that the model had it in.
KNOWN = {
    "train": "trained on",
    "val": "held out to choose the best epoch",
    "test": "held out",
    "none": "not among its histories",
    None: "trained on or not: its facts do not say",
}


def measure(run: Run, records: Records, settings: DistillationSettings, facts: Facts) -> Iterator[Measure]:
    """For each record a rollout on its task: `returns` of the model and of the `source`, the `optimum` and what `random`
    actions get; `quality` is the share of the optimum in the last episodes.

    Of the first learner on each task of the test split there are also the `targets` in each episode, and those that come out
    `right` where the source's history is the context. They have a pass of their own: no bit of the rollouts depends on them.
    """
    evaluate = settings.evaluate.fits(facts["episodes"])
    for start in range(0, len(records), evaluate.batch_size):
        part = records.take(range(start, min(start + evaluate.batch_size, len(records))))
        rows = list(part)
        tasks = np.array([row.inputs["task"] for row in rows])
        found = returns(play(run, tasks, [row.key for row in rows], settings.train, facts))
        optima, chance = ENVIRONMENTS[facts["environment"]].optimum(tasks), random_returns(tasks, facts)
        right = imitations(run, part, settings, facts)
        for row, own, optimum, random in zip(rows, found, optima.tolist(), chance.tolist(), strict=True):
            quality = min(1.0, float(own[-evaluate.last :].mean()) / optimum)
            yield {
                "group": row.group,
                "returns": own.tolist(),
                "source": row.targets["returns"],
                "optimum": optimum,
                "random": random,
                "quality": quality,
                **right.get(row.key, {}),
            }


def imitations(run: Run, records: Records, settings: DistillationSettings, facts: Facts) -> dict[str, Measure]:
    """`right` and `targets` in each episode, by key, of those records whose histories are shown to the model."""
    rows = [row for row in records if row.split == "test" and row.inputs["learner"] == 0]
    if not rows:
        return {}
    histories = Histories(records.root)
    shown = np.stack([histories.array(row.inputs["part"])[row.inputs["row"]] for row in rows])
    right, targets = (found.tolist() for found in imitated(run, shown, settings.train, facts))
    return {row.key: {"right": right[at], "targets": targets[at]} for at, row in enumerate(rows)}


def gallery(run: Run, records: Records, settings: DistillationSettings, facts: Facts) -> Iterator[tuple[str, np.ndarray]]:
    """How the model went about each record's task."""
    for row in records:
        task = np.array([row.inputs["task"]])
        history = play(run, task, [row.key], settings.train, facts)[0]
        found = returns(history)
        optimum = int(ENVIRONMENTS[facts["environment"]].optimum(task)[0])
        caption = f"{row.key}: {found[0]} of {optimum} in the first episode, {found[-1]} in the last"
        yield caption, film(history, task[0], facts)


@dataclass(frozen=True)
class Played:
    """A rollout on a task of a file."""

    name: str
    task: list[int] = field(default_factory=list)
    optimum: int = 0
    history: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 4), np.uint8))
    facts: Facts = field(default_factory=dict)
    error: str | None = None

    @property
    def returns(self) -> list[int]:
        return returns(self.history).tolist()

    @property
    def known(self) -> str:
        """Whether the model was trained on the task, for people."""
        return KNOWN[split_of(self.task, self.facts)]

    def json(self) -> dict[str, Any]:
        if self.error:
            return {"name": self.name, "error": self.error}
        actions = self.history[:, :-1, ACTION].tolist()
        told = {"name": self.name, "task": self.task, "split": split_of(self.task, self.facts), "optimum": self.optimum}
        return {**told, "returns": self.returns, "actions": actions}

    def draw(self) -> np.ndarray:
        return picture(self.history, np.array(self.task), self.facts)

    def film(self) -> np.ndarray:
        """The same step by step, [frames, height, width, 3]."""
        return film(self.history, np.array(self.task), self.facts)


def predict(run: Run, inputs: Iterable[RawInput], settings: DistillationSettings, facts: Facts) -> Iterator[Played]:
    """A rollout for each task of some files: {"environment": name, "tasks": [[numbers], ...]}."""
    for one in inputs:
        try:
            tasks = read_tasks(one, facts["environment"])
        except SlipwayError as error:
            yield Played(one.name, error=str(error))
            continue
        yield from play_all(run, tasks, [f"{one.name}/{number}" for number in range(len(tasks))], settings, facts)


def rollouts(
    run: Run, names: Sequence[str], settings: DistillationSettings, facts: Facts, *, times: int, seed: int
) -> Iterator[Played]:
    """So many rollouts on each task of these names, "8,8" for one, each task once; where there are none on the hardest of the tasks
    held out, or of all where the facts do not tell which these are. They are named by task, seed and number.

    Raises:
        SlipwayError: for a name that is no task.
    """
    kind = ENVIRONMENTS[facts["environment"]]
    others = np.array(held_out_of(facts) or kind.tasks())
    named = [task_named(name, kind) for name in names] or [others[kind.difficulty(others).argmax()]]
    tasks = list(dict.fromkeys(tuple(task.tolist()) for task in named))
    keys = [f"{'-'.join(map(str, task))}.{seed}.{time}" for task in tasks for time in range(times)]
    return play_all(run, np.repeat(np.array(tasks), times, axis=0), keys, settings, facts)


def task_named(name: str, kind: type[Room]) -> np.ndarray:
    """The task that a user writes as numbers with commas."""
    try:
        return kind.task_of([int(part) for part in name.split(",")])
    except (ValueError, SlipwayError):
        raise SlipwayError(f"{name!r} is no task of {kind.name}; {written_task(kind.tasks()[-1])} is one") from None


def play_all(
    run: Run, tasks: np.ndarray, keys: Sequence[str], settings: DistillationSettings, facts: Facts
) -> Iterator[Played]:
    """A rollout on each task, as many at once as the settings say."""
    for start in range(0, len(tasks), settings.evaluate.batch_size):
        part = slice(start, start + settings.evaluate.batch_size)
        optima = ENVIRONMENTS[facts["environment"]].optimum(tasks[part]).tolist()
        histories = play(run, tasks[part], keys[part], settings.train, facts)
        for key, task, optimum, history in zip(keys[part], tasks[part].tolist(), optima, histories, strict=True):
            yield Played(key, task, optimum, history, facts)


def written(environment: str, tasks: Sequence[Sequence[int]]) -> bytes:
    """Tasks as `read_tasks` reads them."""
    return json.dumps({"environment": environment, "tasks": tasks}).encode()


def read_tasks(source: RawInput, environment: str) -> np.ndarray:
    """The tasks in a file, int64 [n, numbers].

    Raises:
        SlipwayError: when it is no such file, is for another environment, or names a task that does not exist.
    """
    path, content = source.place, source.read()
    try:
        value = json.loads(content)
        named, tasks = value["environment"], list(value["tasks"])
    except (ValueError, KeyError, TypeError) as error:
        wanted = '{"environment": name, "tasks": [[numbers], ...]}'
        raise SlipwayError(f"{path}: not {wanted} ({type(error).__name__}: {error})") from None
    if named != environment:
        raise SlipwayError(f"{path}: tasks of {named!r}, and the model was trained in {environment!r}")
    found = []
    for number, task in enumerate(tasks):
        try:
            found.append(ENVIRONMENTS[environment].task_of(task))
        except SlipwayError as error:
            raise SlipwayError(f"{path}: tasks[{number}]: {error}") from None
    if not found:
        raise SlipwayError(f"{path}: tasks is empty: there is nothing to play")
    return np.stack(found)
