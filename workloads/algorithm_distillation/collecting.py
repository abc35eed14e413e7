"""Learning histories made on the spot: a source learns in a thousand rooms at a time, and all it does is written down."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from contracts.errors import SlipwayError
from contracts.files import write_json
from contracts.progress import track
from contracts.workload import code_of
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.environments.room import NUM_ACTIONS, Room
from workloads.algorithm_distillation.histories import INDEX, Histories, is_whole, write_part
from workloads.algorithm_distillation.moments import ACTION, PLACE, RANDOM, REWARD, empty
from workloads.algorithm_distillation.settings import HistoryDownload
from workloads.algorithm_distillation.sources import TOGETHER, source_named
from workloads.algorithm_distillation.sources.source import ANYTHING, Source

# Learners at once: their tables fit into a cache, and an interrupted collection loses little.
PART = 1024
# The same where the learners of a task share a policy: policies are stacked, and the more there are the less each costs.
STACKED = 4096
# Where an environment has more tasks than this and `num_tasks` says nothing, only so many take part that each gets so many
# learners: as many as the model makes rollouts on a held-out one by default.
MANY_TASKS, LEARNERS = 120, 8
# What histories say of themselves, and settings too.
DESCRIBED = ("environment", "source", "episodes", "noise")


def collect(raw: Path, settings: HistoryDownload, store: Path) -> None:
    """Write the histories that `settings` describe below `raw`.

    Each part is made from its own seed and kept in `store` until all are there: a collection that was interrupted goes on
    where it stopped, and gives the same bytes. What other code left there is not used.
    """
    environment = ENVIRONMENTS[settings.environment]
    tasks = chosen_tasks(environment, settings)
    work = store / fingerprint(settings)
    parts = {f"part-{number:05d}": rows for number, rows in enumerate(parts_of(settings, num_tasks=len(tasks)))}
    for name, part in track(list(parts.items()), f"collecting histories of {settings.source}"):
        if not is_whole(work, name):
            rng = np.random.default_rng([settings.seed, int(name.removeprefix("part-"))])
            source = source_named(settings.source)(environment, tasks[part[:, 0]], rng, episodes=settings.episodes)
            rooms, noise = environment(tasks[part[:, 0]]), settings.share_at_random
            histories = learn(source, rooms, rng, episodes=settings.episodes, noise=noise)
            write_part(work, name, histories, part)
    index = {"environment": settings.environment, "source": settings.source, "episodes": settings.episodes}
    write_json(work / INDEX, {**index, "noise": settings.share_at_random, "tasks": tasks.tolist(), "parts": list(parts)})
    shutil.copytree(work, raw, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def parts_of(settings: HistoryDownload, *, num_tasks: int) -> list[np.ndarray]:
    """The rows of each part, int64 [rows, 2]: task and learner. A source whose learners of a task learn from each other has all
    of them in one part."""
    numbers = np.arange(settings.num_samples)
    rows = np.stack([numbers % num_tasks, numbers // num_tasks], axis=1)
    if settings.source not in TOGETHER:
        return np.split(rows, range(PART, len(rows), PART))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    num = max(1, STACKED // (rows[:, 1].max() + 1))  # tasks of a part
    return np.split(rows, np.searchsorted(rows[:, 0], range(num, rows[-1, 0] + 1, num)))


def learn(source: Source, rooms: Room, rng: np.random.Generator, *, episodes: int, noise: float) -> np.ndarray:
    """Let a source learn for so many episodes; gives its histories, uint8 [rooms, episodes, horizon + 1, 4].

    A share `noise` of the steps is made at random instead, and marked, as are those that the source leaves to chance.
    """
    histories = empty(rooms.num, episodes=episodes, horizon=rooms.horizon)
    for episode in range(episodes):
        moments = histories[:, episode]
        places, stages = rooms.reset(), rooms.stages
        moments[:, 0, PLACE] = places
        for step in range(rooms.horizon):
            at_random = rng.random(rooms.num) < noise
            wanted = source.act(places, stages, left=rooms.horizon - step)
            at_random |= wanted == ANYTHING
            actions = np.where(at_random, rng.integers(NUM_ACTIONS, size=rooms.num), wanted)
            reached, rewards = rooms.step(actions)
            source.see(places, stages, actions, rewards, reached)
            moments[:, step, ACTION], moments[:, step, RANDOM] = actions, at_random
            moments[:, step + 1, PLACE], moments[:, step + 1, REWARD] = reached, rewards
            places, stages = reached, rooms.stages
        source.end_episode()
    return histories


def chosen_tasks(environment: type[Room], settings: HistoryDownload) -> np.ndarray:
    """The tasks that take part, in an order that has nothing to do with what they are: a few of them are a fair sample.

    Raises:
        SlipwayError: when more are asked for than there are.
    """
    tasks = environment.tasks()
    if (settings.num_tasks or 0) > len(tasks):
        raise SlipwayError(
            f"download.num_tasks = {settings.num_tasks} is more than the {len(tasks)} tasks of {environment.name}: "
            "make it smaller, or leave it out"
        )
    order = np.random.default_rng(settings.seed).permutation(len(tasks))
    return tasks[order[: settings.num_tasks or max(MANY_TASKS, settings.num_samples // LEARNERS)]]


def check(raw: Path, settings: HistoryDownload) -> None:
    """Compare what `sources` brought to `raw` with what is set about it; what does not stand in params.yaml is not compared, and
    what cannot be read is left to the stage parse to refuse.

    Raises:
        SlipwayError: when the histories are others than the settings say.
    """
    try:
        index = Histories(raw).index
    except SlipwayError:
        return
    said = {name: getattr(settings, name) for name in DESCRIBED if name in settings.model_fields_set}
    wrong = [
        f"{name} = {value!r}, theirs is {index[name]!r}"
        for name, value in said.items()
        if value is not None and value != index[name]
    ]
    if wrong:
        raise SlipwayError(
            f"download.sources brought other histories than download says: {'; '.join(wrong)}. Write what they are, or leave "
            "these settings out, which are for histories that are collected here"
        )


def fingerprint(settings: HistoryDownload) -> str:
    """Names a collection by all that decides it, the code included."""
    code = code_of(Path(__file__).parent.name)
    text = json.dumps([settings.model_dump(mode="json"), PART, STACKED, code], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
