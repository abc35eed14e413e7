"""Rollouts of a whole split as numbers: what share of the optimum is reached, and how it grows from episode to episode. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from contracts.workload import Chart, Measure, Scores
from workloads.algorithm_distillation.environments.room import NUM_ACTIONS
from workloads.algorithm_distillation.settings import RolloutEvaluate

METRIC = "return_of_optimum"
ACCURACY = "action_accuracy"
# The bootstrap: how often rollouts are drawn again, and the part of the draws that a band holds.
NUM_DRAWS, BAND = 500, (0.025, 0.975)


def score(measures: Iterable[Measure], settings: RolloutEvaluate, *, window: int | None = None) -> Scores:
    """The share of the optimum in the last episodes, its rise, and the same for the source and for chance; and, where histories of
    the source were shown, how many of its actions are found after each number of compressions of a `window` of episodes."""
    found = list(measures)
    if not found:
        return Scores({METRIC: 0.0})
    optimum = np.array([one["optimum"] for one in found], dtype=float)
    model, source = (shares(found, name) for name in ("returns", "source"))
    chance = np.array([one["random"] for one in found]) / optimum
    last = slice(-settings.last, None)
    metrics = {
        METRIC: float(model[:, last].mean()),
        "first_episode": float(model[:, 0].mean()),
        "source": float(source[:, last].mean()),
        "random": float(chance.mean()),
        "worst_task": min(row["return_of_optimum"] for row in by_task(found, model, last)),
    }
    draws = resampled([one["group"] for one in found])
    metrics["low"], metrics["high"] = band(model[:, last].mean(1)[draws].mean(1))
    episodes = list(range(1, model.shape[1] + 1))
    lines = {
        "model": (episodes, model.mean(0).tolist()),
        "source": (list(range(1, source.shape[1] + 1)), source.mean(0).tolist()),
        "random": (episodes, [metrics["random"]] * len(episodes)),
        "optimum": (episodes, [1.0] * len(episodes)),
    }
    bands = {"model": band(model[draws].mean(1)), "source": band(source[draws].mean(1))}
    title, y = "Learning in context, with frozen weights", "return, share of the optimum"
    charts = [Chart(title, "lines", "episode", y, lines, "model", bands)]
    if shown := [one for one in found if "right" in one]:
        right, targets = (np.array([one[name] for one in shown]).sum(0) for name in ("right", "targets"))
        metrics |= accuracies(right, targets, window)
        charts.append(chart_of_imitation(right, targets))
    return Scores(metrics, by_task(found, model, last), charts, meanings(settings, metrics))


def accuracies(right: np.ndarray, targets: np.ndarray, window: int | None) -> dict[str, float]:
    """The share of targets that come out likeliest, of counts in each episode [episodes]: of all, and after each number of
    compressions, where one has any."""
    parts = {ACCURACY: slice(None)}
    if window:
        starts = range(0, len(targets), window)
        parts |= {f"{ACCURACY}_depth_{depth}": slice(start, start + window) for depth, start in enumerate(starts)}
    return {name: float(right[part].sum() / targets[part].sum()) for name, part in parts.items() if targets[part].any()}


def chart_of_imitation(right: np.ndarray, targets: np.ndarray) -> Chart:
    """The same for each episode that has targets."""
    there = np.flatnonzero(targets)
    episodes = (there + 1).tolist()
    lines = {
        "model": (episodes, (right[there] / targets[there]).tolist()),
        "chance": (episodes, [1 / NUM_ACTIONS] * len(episodes)),
    }
    return Chart("Actions of the source that are found in its own histories", "lines", "episode", "share", lines, "model")


def resampled(groups: Sequence[str]) -> np.ndarray:
    """Rows of rollouts drawn again, int64 [draws, rollouts]: tasks with replacement, and of each its rollouts likewise."""
    rng = np.random.default_rng(0)
    rows = {name: np.flatnonzero(np.array(groups) == name) for name in dict.fromkeys(groups)}
    longest = max(map(len, rows.values()))
    table = np.stack([np.resize(found, longest) for found in rows.values()])
    sizes = np.array([len(found) for found in rows.values()])
    tasks = rng.integers(len(table), size=(NUM_DRAWS, len(table), 1))
    rollouts = (rng.random((NUM_DRAWS, len(table), longest)) * sizes[tasks]).astype(np.int64)
    return table[tasks, rollouts].reshape(NUM_DRAWS, -1)


def band(means: np.ndarray) -> tuple[Any, Any]:
    """Between which values most of the draws lie, along the first axis: a number each, or a list."""
    low, high = np.quantile(means, BAND, axis=0).tolist()
    return low, high


def shares(found: list[Measure], name: str) -> np.ndarray:
    """Returns as shares of each task's optimum, [rollouts, episodes]."""
    returns = np.array([one[name] for one in found], dtype=float)
    return returns / np.array([one["optimum"] for one in found])[:, None]


def by_task(found: list[Measure], model: np.ndarray, last: slice) -> list[dict[str, Any]]:
    """A row for each task, the ones that are learnt worst first."""
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(found):
        groups.setdefault(one["group"], []).append(number)
    rows = [
        {
            "task": name,
            "optimum": found[numbers[0]]["optimum"],
            "rollouts": len(numbers),
            "first_episode": float(model[numbers, 0].mean()),
            "return_of_optimum": float(model[numbers, last].mean()),
        }
        for name, numbers in groups.items()
    ]
    return sorted(rows, key=lambda row: row["return_of_optimum"])


def meanings(settings: RolloutEvaluate, metrics: Iterable[str]) -> dict[str, str]:
    """What the numbers mean."""
    depths = {name: name.rpartition("_")[2] for name in metrics if name.startswith(f"{ACCURACY}_depth_")}
    return {
        METRIC: f"Mean return in the last {settings.last} episodes of a rollout with frozen weights, divided by the optimum.",
        "first_episode": "The same in the first episode, before anything could be learnt in context.",
        "source": "What the learning algorithm that was imitated reaches on the same tasks in its last episodes, with the steps, "
        "if any, that were made at random in them (download.noise); the model makes none.",
        "random": "What random actions get.",
        "low": "The lower end of the 95% bootstrap interval of the first number, tasks and rollouts on each drawn with replacement; all "
        "of this one training: other seeds and splits may differ by more.",
        "high": "The upper end of that interval.",
        "worst_task": "The same as the first, on the task that is learnt worst.",
        ACCURACY: "On histories of the source on these tasks, with what it did as the context: the share of the actions it meant that "
        "the model finds likeliest. Where several are equally good the source draws one, so 1 is out of reach.",
        **{
            name: f"The same at depth {depth}: so many windows have been compressed before."
            for name, depth in depths.items()
        },
    }
