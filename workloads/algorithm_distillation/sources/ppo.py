"""PPO (Schulman et al. 2017, arXiv 1707.06347) as Stable-Baselines3 has it, a policy a task, all tasks' policies at once: their
networks are stacked, so that one product of matrices is a layer of all of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from workloads.algorithm_distillation.environments.room import NUM_ACTIONS, Room, coordinates
from workloads.algorithm_distillation.rolling import chosen

# The original's: MlpPolicy with these, everything else as Stable-Baselines3 sets it.
LEARNING_RATE, NUM_STEPS, BATCH, NUM_EPOCHS = 3e-4, 80, 40, 20
DISCOUNT, LAMBDA, CLIP, VALUE_SHARE, MAX_NORM = 0.99, 0.95, 0.2, 0.5, 0.5
WIDTH = 64


class Networks(nn.Module):
    """So many perceptrons with two hidden layers: [policies, rows, 2] to [policies, rows, outputs]."""

    def __init__(self, num: int, outputs: int, *, last_gain: float) -> None:
        super().__init__()
        sizes = [(2, WIDTH, math.sqrt(2)), (WIDTH, WIDTH, math.sqrt(2)), (WIDTH, outputs, last_gain)]
        self.weights = nn.ParameterList(
            torch.stack([nn.init.orthogonal_(torch.empty(after, before), gain).T for _ in range(num)])
            for before, after, gain in sizes
        )
        self.biases = nn.ParameterList(torch.zeros(num, 1, after) for _, after, _ in sizes)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, values.tanh() if layer else values, weight)
        return values


class PPO:
    """The learners of a task are streams of one policy, which is taught whenever each has made NUM_STEPS steps.

    As the original's it sees (x, y) and nothing else. The end of an episode is a truncation: what would have come after it is
    estimated. Where tasks have different numbers of streams, an epoch takes of each task as many steps as the fewest streams made,
    drawn anew in every epoch.
    """

    def __init__(self, environment: type[Room], tasks: np.ndarray, rng: np.random.Generator, *, episodes: int) -> None:
        self.rng = rng
        self.policies = np.unique(tasks, axis=0, return_inverse=True)[1].reshape(-1)
        counts = np.bincount(self.policies)
        # Which learner is each policy's first, second, ... stream; where one has fewer than others, its first one again.
        ranked = [np.flatnonzero(self.policies == policy) for policy in range(len(counts))]
        self.streams = np.stack([np.resize(rows, counts.max()) for rows in ranked])
        self.there = torch.from_numpy(np.arange(counts.max()) < counts[:, None])
        self.places_among = np.zeros(len(tasks), np.int64)
        for rows in ranked:
            self.places_among[rows] = np.arange(len(rows))
        self.chance = torch.Generator().manual_seed(int(rng.integers(2**31)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.chance.initial_seed())
            self.actor = Networks(len(counts), NUM_ACTIONS, last_gain=0.01)
            self.critic = Networks(len(counts), 1, last_gain=1.0)
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, eps=1e-5, fused=True)
        self.steps: list[np.ndarray] = []
        self.ends: list[bool] = []

    def act(self, places: np.ndarray, stages: np.ndarray, *, left: int) -> np.ndarray:
        if len(self.steps) == NUM_STEPS:
            self.learn()
        with torch.no_grad():
            logits = self.actor(seen(places[self.streams])).numpy()
        return chosen(logits[self.policies, self.places_among], self.rng.random(len(places)))

    def see(
        self, places: np.ndarray, stages: np.ndarray, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray
    ) -> None:
        self.steps.append(np.stack([places, actions, rewards, reached])[:, self.streams])
        self.ends.append(False)

    def end_episode(self) -> None:
        self.ends[-1] = True

    def learn(self) -> None:
        """Several epochs over what was seen since the last time, which is then forgotten."""
        places, actions, rewards, reached = np.stack(self.steps, axis=-1)  # each [policies, streams, steps]
        ends = self.ends
        self.steps, self.ends = [], []
        num, shape = places[0].size, rewards.shape
        observed, done = seen(places.reshape(len(places), num)), torch.from_numpy(actions).reshape(len(places), num)
        with torch.no_grad():
            values = self.critic(observed).reshape(shape)
            later = self.critic(seen(reached.reshape(len(places), num))).reshape(shape)
            before = log_shares(self.actor(observed), done)
        gains = advantages(torch.from_numpy(rewards), values, later, ends)
        kept = {"observed": observed, "done": done, "before": before, "gains": gains.reshape(len(places), num)}
        kept["returns"] = (gains + values).reshape(len(places), num)
        valid = self.there[..., None].expand(shape).reshape(len(places), num)
        for _ in range(NUM_EPOCHS):
            order = torch.rand(valid.shape, generator=self.chance).masked_fill(~valid, 2.0).argsort(1)
            for rows in order[:, : int(valid.sum(1).min())].split(BATCH, dim=1):
                self._step({name: taken(value, rows) for name, value in kept.items()})

    def _step(self, batch: dict[str, torch.Tensor]) -> None:
        """One step of every policy on a batch of its own; gradients are clipped policy by policy."""
        gains = batch["gains"]
        gains = (gains - gains.mean(1, keepdim=True)) / (gains.std(1, keepdim=True) + 1e-8)
        ratio = (log_shares(self.actor(batch["observed"]), batch["done"]) - batch["before"]).exp()
        gain = torch.minimum(ratio * gains, ratio.clamp(1 - CLIP, 1 + CLIP) * gains).mean(1)
        error = (self.critic(batch["observed"])[..., 0] - batch["returns"]).square().mean(1)
        self.optimizer.zero_grad()
        (VALUE_SHARE * error - gain).sum().backward()
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        norm = torch.stack([value.square().sum((1, 2)) for value in gradients]).sum(0).sqrt()
        for value in gradients:
            value.mul_((MAX_NORM / (norm + 1e-6)).clamp(max=1.0)[:, None, None])
        self.optimizer.step()


def seen(places: np.ndarray) -> torch.Tensor:
    """What a policy is told of a cell: float (x, y)."""
    return torch.from_numpy(coordinates(places)).float()


def log_shares(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The logarithm of the probability of each action."""
    return logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]


def taken(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Of each policy its own rows."""
    return values[torch.arange(len(rows))[:, None], rows]


def advantages(rewards: torch.Tensor, values: torch.Tensor, later: torch.Tensor, ends: list[bool]) -> torch.Tensor:
    """Generalized advantage estimation (arXiv 1506.02438) along the last axis; `later` are the values of what was reached."""
    errors = rewards + DISCOUNT * later - values
    found = torch.zeros_like(errors)
    so_far = torch.zeros_like(errors[..., 0])
    for step in reversed(range(len(ends))):
        so_far = errors[..., step] + DISCOUNT * LAMBDA * so_far * (not ends[step])
        found[..., step] = so_far
    return found
