"""Playing with frozen weights: the model is let loose on a task it does not know, and learns from its context alone; or it is shown
what the source did there, and asked what it would have done. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from contracts.workload import Facts, Run
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.environments.room import NUM_ACTIONS
from workloads.algorithm_distillation.moments import ACTION, PLACE, REWARD, empty
from workloads.algorithm_distillation.settings import DistillationTrain
from workloads.algorithm_distillation.tokens import FIELDS, IGNORED, Vocabulary, labels_of, tokens_of

GROWTH = 64


class Cache:
    """Keys and values of the moments so far, an array float32 [rollouts, heads, capacity, size] each for every layer: so a graph
    takes them as they are. They grow by and by, and what once stands in them stays as it is."""

    def __init__(self, num: int, settings: DistillationTrain) -> None:
        self.num, self.length = num, 0
        shape = (num, settings.heads, GROWTH, settings.width // settings.heads)
        names = (f"{what}_{layer}" for layer in range(settings.layers) for what in ("keys", "values"))
        self.arrays = {name: np.zeros(shape, np.float32) for name in names}

    @property
    def position(self) -> np.ndarray:
        """How many moments there were, int64 [rollouts]."""
        return np.full(self.num, self.length)

    def begin_with(self, kept: np.ndarray) -> None:
        """Forget all, and begin with what is left of it, [rollouts, layers, 2, heads, positions, size]."""
        self.length = kept.shape[-2]
        self.arrays = {name: grown(own) for name, own in zip(self.arrays, by_array(kept), strict=True)}

    def take_in(self, fresh: np.ndarray) -> None:
        """Add a moment, [rollouts, layers, 2, heads, size]."""
        if self.length == next(iter(self.arrays.values())).shape[2]:
            self.arrays = {name: grown(own) for name, own in self.arrays.items()}
        for array, own in zip(self.arrays.values(), by_array(fresh), strict=True):
            array[:, :, self.length] = own
        self.length += 1


def by_array(kept: np.ndarray) -> Iterator[np.ndarray]:
    """The parts of [rollouts, layers, 2, ...] for each array of a cache, in their order."""
    return (kept[:, layer, what] for layer in range(kept.shape[1]) for what in range(2))


def grown(array: np.ndarray) -> np.ndarray:
    """The same with more room behind its positions."""
    room = np.zeros((*array.shape[:2], GROWTH, array.shape[3]), np.float32)
    return np.concatenate([array, room], axis=2)


def play(run: Run, tasks: np.ndarray, keys: Sequence[str], settings: DistillationTrain, facts: Facts) -> np.ndarray:
    """A rollout of all episodes on each of `tasks` [n, numbers], together: histories uint8 [n, episodes, horizon + 1, 4].

    What chance does in a rollout depends on its key alone, not on the others beside it.
    """
    vocabulary, rooms = Vocabulary.of(facts), ENVIRONMENTS[facts["environment"]](tasks)
    chances = np.stack([generator(key).random((vocabulary.episodes, vocabulary.horizon)) for key in keys])
    histories = empty(rooms.num, episodes=vocabulary.episodes, horizon=vocabulary.horizon)
    histories[:, :, 0, PLACE] = rooms.reset()[:, None]
    for episode, step, logits in read(run, histories, settings, vocabulary):
        if step == vocabulary.horizon:
            rooms.reset()
            continue
        moments, actions = histories[:, episode], chosen(logits, chances[:, episode, step])
        moments[:, step, ACTION] = actions
        moments[:, step + 1, PLACE], moments[:, step + 1, REWARD] = rooms.step(actions)
    return histories


def imitated(run: Run, histories: np.ndarray, settings: DistillationTrain, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """How many of a source's actions come out likeliest where its own history, uint8 [n, episodes, horizon + 1, 4], and not the
    model's is the context: right ones and targets, int64 [n, episodes] each."""
    labels = labels_of(histories)
    guesses = np.empty_like(labels)
    for episode, step, logits in read(run, histories, settings, Vocabulary.of(facts)):
        guesses[:, episode, step] = logits.argmax(-1)
    return (guesses == labels).sum(-1), (labels != IGNORED).sum(-1)


def read(
    run: Run, histories: np.ndarray, settings: DistillationTrain, vocabulary: Vocabulary
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Show the model histories uint8 [n, episodes, horizon + 1, 4], moment by moment: gives episode, step and logits [n, 5].

    A moment is looked at when it is its turn: who asks may first write what came of the last one.
    """
    num = len(histories)
    cache = Cache(num, settings)
    latents = np.zeros((num, settings.latents, settings.width), np.float32)
    for episode in range(vocabulary.episodes):
        if settings.window and episode and episode % settings.window == 0:
            first = episode - settings.window
            window = tokens_of(histories[:, first:episode], vocabulary, first=first).reshape(num, -1, len(FIELDS))
            left = run("compress", latents=latents, tokens=window.astype(np.int64))
            latents = left["latents_after"]
            cache.begin_with(left["cache"])
        for step in range(vocabulary.horizon + 1):
            tokens = tokens_of(histories[:, episode, None], vocabulary, first=episode)[:, 0, step].astype(np.int64)
            found = run("step", tokens=tokens, position=cache.position, **cache.arrays)
            cache.take_in(found["fresh"])
            yield episode, step, found["logits"]


def chosen(logits: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Actions int64 [n] drawn from the softmax of `logits` [n, actions] by numbers between 0 and 1 [n].

    The likeliest one would get stuck for ever on some tasks.
    """
    shares = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True)).cumsum(-1)
    return (shares < chances[:, None] * shares[:, -1:]).sum(-1)


def random_returns(tasks: np.ndarray, facts: Facts, *, episodes: int = 256) -> np.ndarray:
    """The mean return of one who acts at random, on each of `tasks`, float64 [n]."""
    rooms = ENVIRONMENTS[facts["environment"]](np.repeat(tasks, episodes, axis=0))
    rng = generator("random")
    total = np.zeros(rooms.num)
    for _ in range(rooms.horizon):
        total += rooms.step(rng.integers(NUM_ACTIONS, size=rooms.num))[1]
    return total.reshape(len(tasks), episodes).mean(1)


def generator(key: str) -> np.random.Generator:
    """Chance that depends on `key` and on nothing else."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
