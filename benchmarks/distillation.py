"""Algorithm distillation against the plain ways of doing it: `python -m benchmarks.distillation` writes results/distillation.json.

Training: targets a second with a loss at every step of whole histories, against windows that end in one target, of the same model.
Playing: a step with the cache, by ONNX Runtime as it ships and by torch, against encoding the whole context again at every step, by
torch: what is by the cache and what by the runtime is told apart. Both of plain AD and of compressed AD, whose compressing counts.
Histories: seconds a task of the stacked PPO and of the explorer for as many tasks at once as the stage collects, against
Stable-Baselines3's PPO for one goal after another, each for as many steps of as many streams, and for as many updates; by the
clock, with the threads that torch takes, as in the stage, and Stable-Baselines3's also with one: the faster counts.
The others on one thread; their times are the processor's. Contestants take turns. A bar is met where every row of it reaches it, the
worst one too; that of playing where as many rollouts are made at once as the stage evaluate makes, and what a single one gains
stands beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.conditions import load_now, write_result
from cli.use import preset_file
from contracts.settings import read_params
from contracts.workload import Graph, Run
from engine.torch_runtime import torch_run
from serving.runtime import open_run
from tasks.export import write_artifact
from tasks.shipping.latency import one_torch_thread
from workloads.algorithm_distillation.collecting import learn, parts_of
from workloads.algorithm_distillation.environments import Darkroom
from workloads.algorithm_distillation.environments.registered import GymnasiumRoom
from workloads.algorithm_distillation.graph import graphs
from workloads.algorithm_distillation.objective import DistillationObjective, build, make_optimizer
from workloads.algorithm_distillation.rolling import play
from workloads.algorithm_distillation.settings import DistillationSettings, HistoryDownload
from workloads.algorithm_distillation.sources import source_named
from workloads.algorithm_distillation.sources.ppo import NUM_STEPS, PPO
from workloads.algorithm_distillation.tokens import IGNORED, Vocabulary, labels_of, tokens_of

NAME = "algorithm_distillation"
FACTS = {"environment": "darkroom", "episodes": 24}
BATCH, TURNS, PLAIN_STEPS = 8, 3, 12
# Streams of a task and episodes. 70 are what the default's number of histories makes; an update takes as long as the one before.
PPO_RUNS = [(4, 28), (70, 8)]
# Held-out tasks, and rollouts of each, as the default has them; every how many steps encoding again is timed.
TASKS, ROLLOUTS, EVERY = [(8, 8), (7, 5), (1, 5), (0, 2), (7, 0), (7, 6), (3, 2), (4, 2)], 8, 42
EVALUATED = len(TASKS) * ROLLOUTS
BARS = {
    "training": (60.0, "x the targets/s of one target a window, plain and compressed AD"),
    "playing": (
        30.0,
        "x a step that encodes again, plain and compressed AD, 64 rollouts, by ONNX Runtime and by torch",
    ),
    "histories": (20.0, "x Stable-Baselines3's PPO a goal, 4 streams and 70"),
}


def main() -> None:
    load, batch = load_now(), histories()
    found: dict[str, list[dict[str, Any]]] = {"training": [], "playing": []}
    with one_torch_thread():
        for preset in ("default", "compressed"):
            settings = DistillationSettings.model_validate(read_params(preset_file(NAME, preset)))
            found["training"].append({"preset": preset, **training(settings, batch)})
            found["playing"] += [{"preset": preset, **row} for row in playing(settings, batch)]
    found["histories"] = [collecting(streams, episodes) for streams, episodes in PPO_RUNS]
    bar = "; ".join(f"{name}: >= {least:g} {words}" for name, (least, words) in BARS.items())
    write_result("distillation", bar=bar, **judged(found), load=load)


def judged(found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The rows of each bar, each with whether it is met by ONNX Runtime and by torch; and whether all of a bar's are, and of all."""
    ratios = {"ratio": "met", "ratio_by_torch": "met_by_torch"}
    rows = {
        name: [{**row, **{met: row[one] >= least for one, met in ratios.items() if one in row}} for row in found[name]]
        for name, (least, _) in BARS.items()
    }
    counting = {name: [row for row in some if row.get("rollouts", EVALUATED) == EVALUATED] for name, some in rows.items()}
    bars = {name: all(row.get(met, True) for row in some for met in ratios.values()) for name, some in counting.items()}
    return {"met": all(bars.values()), "bars_met": bars, **rows}


def in_turn(ways: Mapping[str, Callable[[], object]], *, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """The seconds of each, the processor's unless told, the median of some turns, in each of which all have theirs."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, work in ways.items():
            began = clock()
            work()
            times[name].append(clock() - began)
    return {name: median(found) for name, found in times.items()}


def histories() -> dict[str, torch.Tensor]:
    """A batch of the explorer's, as training takes it."""
    tasks, rng = Darkroom.tasks()[: 81 : 81 // BATCH][:BATCH], np.random.default_rng(0)
    explorer = source_named("explorer")(Darkroom, tasks, rng, episodes=24)
    found = learn(explorer, Darkroom(tasks), rng, episodes=24, noise=0.1)
    tokens = tokens_of(found, Vocabulary.of(FACTS)).reshape(BATCH, -1, 7)
    return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels_of(found).reshape(BATCH, -1))}


def training(settings: DistillationSettings, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Targets a second of both ways. The plain windows begin with the history, too, and end anywhere in it."""
    ours, plain = build(settings, FACTS), build(settings, FACTS)
    rng, length = np.random.default_rng(0), batch["tokens"].shape[1]
    ends = [int(end) for end in rng.integers(1, length, PLAIN_STEPS)]
    windows = [{"tokens": batch["tokens"][:, :end], "labels": only_last(batch["labels"][:, :end])} for end in ends]
    step_ours, step_plain = stepper(ours, settings), stepper(plain, settings)
    step_ours(batch)
    step_plain(windows[0])
    times = in_turn({"ours": lambda: step_ours(batch), "plain": lambda: [step_plain(window) for window in windows]})
    rate, plain_rate = int((batch["labels"] != IGNORED).sum()) / times["ours"], BATCH * PLAIN_STEPS / times["plain"]
    return {"targets_per_second": rate, "one_target_a_window": plain_rate, "ratio": rate / plain_rate}


def only_last(labels: torch.Tensor) -> torch.Tensor:
    """No label but one at the last step."""
    found = torch.full_like(labels, IGNORED)
    found[:, -1] = labels[:, -1].clamp(min=0)
    return found


def stepper(objective: DistillationObjective, settings: DistillationSettings) -> Callable[[dict[str, torch.Tensor]], None]:
    """A step of training."""
    optimizer = make_optimizer(objective, settings.train)

    def step(batch: dict[str, torch.Tensor]) -> None:
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        optimizer.step()

    return step


def playing(settings: DistillationSettings, batch: dict[str, torch.Tensor]) -> list[dict[str, float]]:
    """Milliseconds a step over all 24 episodes: of as many rollouts at once as the stage evaluate makes, and of one."""
    objective = build(settings, FACTS).eval()
    made = graphs(objective.learner, settings.train, FACTS)
    with tempfile.TemporaryDirectory() as folder:
        runs = {"cached_ms": exported(made, settings, Path(folder)), "cached_by_torch_ms": torch_run(made, "cpu")}
    return [stepping(runs, objective, settings, batch["tokens"], num) for num in (EVALUATED, 1)]


def stepping(
    runs: Mapping[str, Run], objective: DistillationObjective, settings: DistillationSettings, tokens: torch.Tensor, num: int
) -> dict[str, float]:
    """Milliseconds a step of `num` rollouts; of encoding again the mean over some lengths of the context."""
    tasks, keys = np.resize(np.array(TASKS), (num, 2)), [str(number) for number in range(num)]
    many = tokens.repeat(-(-num // len(tokens)), 1, 1)[:num]
    ends = range(EVERY // 2, tokens.shape[1], EVERY)

    @torch.inference_mode()
    def again() -> None:
        for end in ends:
            objective.learner(many[:, :end])

    ways = {name: partial(play, run, tasks, keys, settings.train, FACTS) for name, run in runs.items()}
    times = in_turn({**ways, "encoding_again_ms": again})
    steps = {**dict.fromkeys(ways, tokens.shape[1]), "encoding_again_ms": len(ends)}
    found = {name: 1000 * times[name] / steps[name] for name in times}
    ratio, by_the_cache = (found["encoding_again_ms"] / found[name] for name in ("cached_ms", "cached_by_torch_ms"))
    return {"rollouts": num, **found, "ratio": ratio, "ratio_by_torch": by_the_cache}


def exported(made: Mapping[str, Graph], settings: DistillationSettings, folder: Path) -> Run:
    """The graphs as ONNX Runtime has them."""
    write_artifact(folder, made, workload=NAME, settings=settings, facts=FACTS)
    return open_run(folder, threads=1)


def collecting(streams: int, episodes: int) -> dict[str, float]:
    """Seconds a task with so many streams of each, as many tasks at once as the stage collects."""
    settings = HistoryDownload(source="ppo", num_samples=streams * len(Darkroom.tasks()))
    part = parts_of(settings, num_tasks=len(Darkroom.tasks()))[0]
    tasks = Darkroom.tasks()[part[:, 0]]
    num = len(np.unique(part[:, 0]))
    on_one_thread = one_torch_thread()(stable_baselines)
    times = in_turn(
        {
            "ppo": lambda: collect("ppo", tasks, episodes),
            "explorer": lambda: collect("explorer", tasks, episodes),
            "stable_baselines3": lambda: stable_baselines(streams, episodes),
            "stable_baselines3_with_1_thread": lambda: on_one_thread(streams, episodes),
        },
        clock=time.perf_counter,
    )
    ours, explorer = times["ppo"] / num, times["explorer"] / num
    reference = min(times["stable_baselines3"], times["stable_baselines3_with_1_thread"])
    return {
        "streams": streams,
        "steps": episodes * Darkroom.horizon,
        "updates": episodes * Darkroom.horizon // NUM_STEPS,
        "tasks_at_once": num,
        "ppo_seconds_a_task": ours,
        "explorer_seconds_a_task": explorer,
        "threads": torch.get_num_threads(),
        "stable_baselines3_seconds_a_task": times["stable_baselines3"],
        "stable_baselines3_seconds_a_task_with_1_thread": times["stable_baselines3_with_1_thread"],
        "ratio": reference / ours,
        "ratio_of_the_explorer": reference / explorer,
    }


def collect(source: str, tasks: np.ndarray, episodes: int) -> None:
    """The histories of some tasks. Our PPO is taught when it is to act again; Stable-Baselines3 also after the last step."""
    rng = np.random.default_rng(0)
    learner = source_named(source)(Darkroom, tasks, rng, episodes=episodes)
    learn(learner, Darkroom(tasks), rng, episodes=episodes, noise=0.0)
    if isinstance(learner, PPO):
        learner.learn()


def stable_baselines(streams: int, episodes: int) -> None:
    """The same by Stable-Baselines3's PPO, for one goal."""
    from stable_baselines3 import PPO as Reference
    from stable_baselines3.common.env_util import make_vec_env

    rooms = make_vec_env(lambda: GymnasiumRoom("darkroom", (5, 5)), n_envs=streams, seed=0)
    made = Reference("MlpPolicy", rooms, learning_rate=3e-4, n_steps=80, batch_size=40, n_epochs=20, seed=0, device="cpu")
    made.learn(episodes * Darkroom.horizon * streams)


if __name__ == "__main__":
    main()
