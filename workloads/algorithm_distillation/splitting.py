"""Which tasks are held out: near ones and far ones in every split, the farthest among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contracts.errors import SlipwayError


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
