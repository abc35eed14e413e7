"""The preset 2m from training to actions: `python -m benchmarks.large_learner` writes results/large_learner.json.

Its model as it is, on a few histories: whether the larger size trains, is exported with both graphs, and plays by ONNX Runtime the
actions that it plays by torch; not what it learns. All on one thread; times are the processor's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.conditions import load_now, write_result
from benchmarks.distillation import FACTS, NAME, TASKS, exported, histories
from cli.use import preset_file
from contracts.settings import read_params
from contracts.workload import Run
from engine.torch_runtime import torch_run
from workloads.algorithm_distillation.graph import graphs
from workloads.algorithm_distillation.moments import ACTION
from workloads.algorithm_distillation.objective import DistillationObjective, build, make_optimizer
from workloads.algorithm_distillation.rolling import play
from workloads.algorithm_distillation.settings import DistillationSettings

NUM_STEPS, NUM_TASKS, LEAST_ACTIONS = 5, 3, 1000
BAR = f"after {NUM_STEPS} steps of training at least {LEAST_ACTIONS} actions, all of them equal by torch and by ONNX Runtime"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load, seconds = load_now(), dict[str, float]()
    settings = DistillationSettings.model_validate(read_params(preset_file(NAME, "2m")))
    objective = build(settings, FACTS)
    with tempfile.TemporaryDirectory() as folder:
        with timed(seconds, "training"):
            losses = list(trained(objective, settings))
        made = graphs(objective.eval().learner, settings.train, FACTS)
        with timed(seconds, "exporting"):
            files = exported(made, settings, Path(folder))
        one, other = (
            played(run, settings, name, seconds) for name, run in (("torch", torch_run(made, "cpu")), ("onnx", files))
        )
    found = {"parameters": sum(value.numel() for value in objective.parameters()), "losses": losses, "seconds": seconds}
    equal = int((one == other).sum())
    met = one.size >= LEAST_ACTIONS and equal == one.size and losses[-1] < losses[0]
    write_result("large_learner", bar=BAR, met=met, load=load, **found, actions=one.size, equal=equal)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Write down the processor's time for what is done inside."""
    began = time.process_time()
    yield
    seconds[name] = time.process_time() - began


def trained(objective: DistillationObjective, settings: DistillationSettings) -> Iterator[float]:
    """The loss of each step, on one batch."""
    optimizer, batch = make_optimizer(objective.train(), settings.train), histories()
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def played(run: Run, settings: DistillationSettings, name: str, seconds: dict[str, float]) -> np.ndarray:
    """The actions of a rollout on each of some tasks, together, [tasks, episodes, horizon]."""
    tasks = np.array(TASKS[:NUM_TASKS])
    with timed(seconds, f"playing, {name}"):
        return play(run, tasks, [str(task) for task in TASKS[:NUM_TASKS]], settings.train, FACTS)[:, :, :-1, ACTION]


if __name__ == "__main__":
    main()
