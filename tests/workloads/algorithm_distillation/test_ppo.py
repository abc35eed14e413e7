"""The stacked PPO is Stable-Baselines3's PPO, many times over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workloads.algorithm_distillation.collecting import learn
from workloads.algorithm_distillation.environments import Darkroom
from workloads.algorithm_distillation.moments import returns
from workloads.algorithm_distillation.sources.ppo import PPO, advantages

GOAL, STREAMS, EPISODES = (5, 5), 8, 20


def learnt(tasks: np.ndarray, *, seed: int, episodes: int) -> np.ndarray:
    """The returns of each episode, [learners, episodes]."""
    rng = np.random.default_rng(seed)
    return returns(learn(PPO(Darkroom, tasks, rng, episodes=episodes), Darkroom(tasks), rng, episodes=episodes, noise=0))


def of_stable_baselines(*, seed: int) -> np.ndarray:
    """The same of Stable-Baselines3 with the same settings."""
    from stable_baselines3 import PPO as Reference
    from stable_baselines3.common.env_util import make_vec_env

    from workloads.algorithm_distillation.environments.registered import GymnasiumRoom

    rooms = make_vec_env(lambda: GymnasiumRoom("darkroom", GOAL), n_envs=STREAMS, seed=seed)
    heard: list[np.ndarray] = []
    made = Reference("MlpPolicy", rooms, learning_rate=3e-4, n_steps=80, batch_size=40, n_epochs=20, seed=seed, device="cpu")
    made.learn(EPISODES * Darkroom.horizon * STREAMS, callback=lambda now, _: heard.append(now["rewards"].copy()) or True)
    return np.array(heard).T.reshape(STREAMS, EPISODES, Darkroom.horizon).sum(-1)


@pytest.mark.slow
def test_it_learns_as_stable_baselines_does_within_the_spread_of_seeds() -> None:
    tasks = np.array([GOAL] * STREAMS)
    ours, theirs = (
        np.array([made(seed).mean(0) for seed in range(3)])
        for made in (lambda seed: learnt(tasks, seed=seed, episodes=EPISODES), lambda seed: of_stable_baselines(seed=seed))
    )
    for episodes in (slice(0, 4), slice(8, 12), slice(16, 20)):
        one, other = ours[:, episodes].mean(1), theirs[:, episodes].mean(1)
        assert abs(one.mean() - other.mean()) <= 2 * max(one.std(ddof=1), other.std(ddof=1)) + 0.3
    assert ours[:, -4:].mean() > 2 * ours[:, :4].mean()


def test_a_policy_learns_the_same_alone_and_among_others() -> None:
    """Of weights, data and optimiser nothing is shared: the first policy's weights are drawn first."""
    alone = PPO(Darkroom, np.array([(1, 1)] * 4), np.random.default_rng(0), episodes=9)
    beside = PPO(Darkroom, np.array([(1, 1)] * 4 + [(7, 7)] * 4), np.random.default_rng(0), episodes=9)
    with torch.no_grad():
        for mine, both in zip(alone.parameters, beside.parameters, strict=True):
            both[:1] = mine
    batch = {
        "observed": torch.rand(2, 40, 2) * 8,
        "done": torch.randint(5, (2, 40)),
        "before": torch.full((2, 40), -1.6),
        "gains": torch.randn(2, 40),
        "returns": torch.randn(2, 40) * 5,
    }
    for _ in range(3):
        alone._step({name: value[:1] for name, value in batch.items()})
        beside._step(batch)
    assert all(
        torch.allclose(mine, both[:1], atol=1e-6) for mine, both in zip(alone.parameters, beside.parameters, strict=True)
    )


def test_tasks_with_different_numbers_of_streams_learn_side_by_side() -> None:
    tasks = np.array([(1, 1), (7, 7), (1, 1), (4, 4), (1, 1)])
    found = learnt(tasks, seed=0, episodes=5)
    assert found.shape == (5, 5)


def test_advantages_end_with_an_episode_and_count_what_would_have_come_after() -> None:
    rewards, values, later = (torch.tensor([row]) for row in ([1.0, 0.0, 2.0], [0.5, 1.0, 0.0], [1.0, 3.0, 4.0]))
    found = advantages(rewards, values, later, [False, True, False])
    last, second = 2 + 0.99 * 4, 0.99 * 3 - 1
    assert torch.allclose(found, torch.tensor([[1 + 0.99 * 1 - 0.5 + 0.99 * 0.95 * second, second, last]]))
