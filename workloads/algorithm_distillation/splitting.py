"""Which tasks are held out: near ones and far ones in every split, the farthest among them; and how a model's facts tell it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from contracts.errors import SlipwayError
from contracts.records import SPLITS
from contracts.workload import Facts


def split_tasks(difficulty: np.ndarray, shares: Sequence[float], *, seed: int) -> list[str]:
    """The split of each task: "train", "val" or "test".

    The tasks are put in order, the hardest first and equally hard ones as `seed` shuffles them; test takes them at even
    distances from the first on, val likewise among those that are left.

    Raises:
        SlipwayError: when a split that has a share gets no task.
    """
    order = np.random.default_rng(seed).permutation(len(difficulty))
    order = order[np.argsort(-difficulty[order], kind="stable")]
    splits = np.full(len(difficulty), "train")
    for name, share in (("test", shares[2]), ("val", shares[1])):
        num = round(share * len(difficulty))
        if share and not num:
            raise SlipwayError(
                f"{share:g} of {len(difficulty)} tasks is less than one for {name}: collect histories of more tasks "
                "(download.num_tasks, download.num_samples), or give that split a larger share in parse.shares"
            )
        left = order[splits[order] == "train"]
        splits[left[(np.arange(num) * len(left)) // max(num, 1)]] = name
    return splits.tolist()


def told(tasks: Iterable[tuple[str, Sequence[int]]]) -> dict[str, str]:
    """Pairs of a split and a task as facts have them: for each split its tasks, as `slipway rollout` takes them."""
    found = sorted({(split, tuple(task)) for split, task in tasks})
    return {name: " ".join(written(task) for split, task in found if split == name) for name in SPLITS}


def written(task: Sequence[int]) -> str:
    """A task as users write it: 8,8."""
    return ",".join(map(str, task))


def split_of(task: Sequence[int], facts: Facts) -> str | None:
    """The split that a model had a task in, "none" where it had it in none; None where its facts do not tell: those of
    earlier versions do not."""
    if "splits" not in facts:
        return None
    return next((name for name, tasks in facts["splits"].items() if written(task) in tasks.split()), "none")


def held_out_of(facts: Facts) -> list[list[int]]:
    """The tasks of the test split, or of val where there are none; none where the facts do not tell."""
    splits = facts.get("splits", {})
    return [list(map(int, one.split(","))) for one in (splits.get("test") or splits.get("val", "")).split()]
