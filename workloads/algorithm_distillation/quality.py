"""Whether there is anything to distil: what of the source's learning can be seen in its histories, before any training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contracts.files import write_json
from contracts.records import Records
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.environments.room import NUM_ACTIONS, NUM_CELLS
from workloads.algorithm_distillation.histories import Histories, gather
from workloads.algorithm_distillation.moments import ACTION, PLACE, RANDOM, REWARD
from workloads.algorithm_distillation.sources import INFORMED

# Histories that are looked at, and below or above what something is wrong with them.
MOST = 4096
LEAST_GAIN, SMALL_GAIN = 0.02, 0.2
LEAST_SEEN = 0.5
# The share of the entropy of chance that random actions must show on the same places to be told from a habit.
LEAST_TOLD = 0.5


@dataclass(frozen=True)
class Quality:
    """`returns` are shares of the optimum and `entropy` nats of the meant actions where the task and the cell are known, both
    an episode each; ln 5 is chance, 0 a fixed habit, NaN where all steps were made at random (then `meant`, the share of the steps
    that were not, is 0) or where so few learners share a task that chance would look like a habit.

    `gain` is the return of the last third of the episodes over that of the first episode. Of the histories that are ever
    rewarded, `seen` is the share whose first reward comes after an episode without any: their discovery can be seen.
    `informed` says that the source knows the task.
    """

    returns: list[float]
    entropy: list[float]
    meant: list[float]
    gain: float
    rewarded: float
    seen: float
    informed: bool

    @property
    def fault(self) -> str | None:
        """Why training on these histories teaches nothing; None where it may."""
        chance = math.log(NUM_ACTIONS)
        if not self.meant[-1]:
            acts = "all its steps were made at random (download.noise)"
        elif self.gain < LEAST_GAIN:
            acts = f"the entropy of its actions is {self.entropy_in(-1)} of {chance:.2f} at the end"
        else:
            return None
        return (
            f"the source does not learn in the histories that are shown: its return goes from {self.returns[0]:.3f} of the optimum in "
            f"the first episode to {self.returns[0] + self.gain:.3f} in the last ones, and {acts}. "
            "There is nothing to distil: collect longer histories (download.episodes), or let another algorithm learn (download.source)"
        )

    def entropy_in(self, episode: int) -> str:
        """The entropy of an episode, in words where there is none."""
        if not self.meant[episode]:
            return "no step is meant"
        return (
            "unknown, for want of learners on each task,"
            if math.isnan(self.entropy[episode])
            else f"{self.entropy[episode]:.2f}"
        )

    @property
    def findings(self) -> list[str]:
        """What a user should know, a sentence each."""
        first, last = self.entropy_in(0), self.entropy_in(-1)
        found = [
            f"return, as a share of the optimum: {self.returns[0]:.2f} in the first episode, {self.returns[-1]:.2f} in the last",
            f"entropy of the meant actions, of {math.log(NUM_ACTIONS):.2f}: {first} in the first episode, {last} in the last",
            f"{self.rewarded:.0%} of the histories are ever rewarded; of those, {self.seen:.0%} show episodes without any reward before",
        ]
        return found + [f"warning: {one}" for one in self.warnings]

    @property
    def warnings(self) -> list[str]:
        """What is likely to make a model that imitates instead of learning."""
        found = []
        if LEAST_GAIN <= self.gain < SMALL_GAIN:
            found.append(
                f"the source gains only {self.gain:.2f} of the optimum over the shown episodes: more of them show more"
            )
        if self.rewarded and self.seen < LEAST_SEEN:
            found.append(
                f"only {self.seen:.0%} of the discoveries can be seen: the other histories begin with what was found out before, and "
                "a model learns to copy their actions instead of exploring. Histories must be whole, from the first episode on"
            )
        if self.informed:
            found.append(
                "the source knows the task: there is no discovery in its histories, and what a model learns from them is worth less "
                "(download.source explorer or q_learning find the task out)"
            )
        return found


def look(records: Records) -> Quality:
    """What the training histories are like: of so many of them at most, evenly spread."""
    histories = Histories(records.root)
    environment = ENVIRONMENTS[histories.index["environment"]]
    train = records.split("train")
    train = train.take(np.linspace(0, len(train) - 1, min(len(train), MOST)).astype(np.int64))
    rows = list(train)
    numbers = {name: number for number, name in enumerate(histories.index["parts"])}
    arrays = [histories.array(name) for name in numbers]
    parts = np.array([numbers[row.inputs["part"]] for row in rows])
    moments = gather(arrays, parts, np.array([row.inputs["row"] for row in rows]))
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    optimum = environment.optimum(np.array([row.inputs["task"] for row in rows]))
    shares = moments[..., REWARD].sum(-1) / optimum[:, None]
    rewarded = shares > 0
    first = np.where(rewarded.any(1), rewarded.argmax(1), -1)
    curve = shares.mean(0)
    return Quality(
        returns=curve.tolist(),
        entropy=list(entropies(moments, groups)),
        meant=(moments[:, :, :-1, RANDOM] == 0).mean((0, 2)).tolist(),
        gain=float(curve[-max(1, len(curve) // 3) :].mean() - curve[0]),
        rewarded=float((first >= 0).mean()),
        seen=float((first > 0).sum() / max((first >= 0).sum(), 1)),
        informed=histories.index["source"] in INFORMED,
    )


def entropies(moments: np.ndarray, groups: np.ndarray) -> Iterator[float]:
    """For each episode the mean entropy of the meant actions given task and cell; NaN where none is meant, or where random actions on
    the same places would not show half of that of chance: one action on each place has the entropy 0, whoever chose it."""
    rng = np.random.default_rng(0)
    for episode in range(moments.shape[1]):
        steps = moments[:, episode, :-1]
        meant = steps[..., RANDOM] == 0
        places = (groups[:, None] * NUM_CELLS + steps[..., PLACE])[meant]
        chance = entropy(places, rng.integers(NUM_ACTIONS, size=len(places))) if len(places) else 0
        known = chance > LEAST_TOLD * math.log(NUM_ACTIONS)
        yield entropy(places, steps[..., ACTION][meant]) if known else math.nan


def entropy(places: np.ndarray, actions: np.ndarray) -> float:
    """The mean entropy of actions [n] given their places [n], with Miller and Madow's correction."""
    counts = np.zeros((places.max() + 1, NUM_ACTIONS))
    np.add.at(counts, (places, actions), 1)
    num = counts.sum(1, keepdims=True)
    share = counts / np.maximum(num, 1)
    plain = -(share * np.log(np.maximum(share, 1e-12))).sum(1)
    corrected = plain + (np.count_nonzero(counts, axis=1) - 1) / (2 * np.maximum(num[:, 0], 1))
    return float((np.minimum(corrected, math.log(NUM_ACTIONS)) * num[:, 0]).sum() / num.sum())


def quality(records: Records, folder: Path) -> dict[str, Any]:
    """Write quality.md and quality.json to `folder`, and give what the latter holds."""
    found = look(records)
    numbers = {**asdict(found), "fault": found.fault, "findings": [*found.findings, *([found.fault] if found.fault else [])]}
    write_json(folder / "quality.json", numbers)
    rows = [
        f"| {number} | {value:.3f} | {'' if math.isnan(chance) else f'{chance:.3f}'} |"
        for number, (value, chance) in enumerate(zip(found.returns, found.entropy, strict=True), 1)
    ]
    table = ["| episode | return, share of the optimum | entropy of the meant actions |", "| --- | --- | --- |", *rows]
    text = ["# What the source's histories show", "", *(f"* {one}" for one in numbers["findings"]), "", *table, ""]
    (folder / "quality.md").write_text("\n".join(text), encoding="utf-8")
    return numbers
