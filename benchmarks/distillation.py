"""Algorithm distillation against the plain ways of doing it: `python -m benchmarks.distillation` writes results/distillation.json.

Training: targets a second with a loss at every step of whole histories, against windows that end in one target, of the same model.
Playing: a step of 64 rollouts with the cache by ONNX Runtime, against encoding their whole context again at every step, by torch. Histories: seconds a
task of the stacked PPO for all 81 goals, and of the explorer, against Stable-Baselines3's PPO for one goal after another, each for as
many steps of as many streams. All on one thread; times are the processor's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.conditions import load_now, write_result
from contracts.files import write_json
from contracts.workload import Run
from serving.runtime import open_run
from tasks.export import describe_graph, write_onnx
from workloads.algorithm_distillation.collecting import learn
from workloads.algorithm_distillation.environments import Darkroom
from workloads.algorithm_distillation.environments.registered import GymnasiumRoom
from workloads.algorithm_distillation.graph import graphs
from workloads.algorithm_distillation.objective import DistillationObjective, build, make_optimizer
from workloads.algorithm_distillation.rolling import play
from workloads.algorithm_distillation.settings import DistillationSettings
from workloads.algorithm_distillation.sources import source_named
from workloads.algorithm_distillation.tokens import IGNORED, Vocabulary, labels_of, tokens_of

FACTS = {"environment": "darkroom", "episodes": 24}
BATCH, TURNS, PLAIN_STEPS = 8, 3, 12
STREAMS, PPO_EPISODES = 4, 28
# Held-out tasks, and rollouts of each, as the default has them; every how many steps encoding again is timed.
TASKS, ROLLOUTS, EVERY = [(0, 8), (7, 5), (1, 5), (0, 2), (7, 0), (7, 6), (3, 2), (4, 2)], 8, 42
BARS = {"training": 60.0, "playing": 30.0, "histories": 20.0}


def main() -> None:
    torch.set_num_threads(1)
    load, settings = load_now(), DistillationSettings()
    batch = histories()
    found = {"training": training(settings, batch), "playing": playing(settings, batch), "histories": collecting()}
    bar = "x the targets/s of one target a window, x a re-encoding step, x Stable-Baselines3's PPO a goal"
    write_result(
        "distillation",
        bar=f">= {', '.join(f'{value:g}' for value in BARS.values())} {bar}",
        met=all(found[name]["ratio"] >= value for name, value in BARS.items()),
        load=load,
        **found,
    )


def seconds(work: Callable[[], object]) -> float:
    """The processor's time for `work`, the median of some turns."""
    times = []
    for _ in range(TURNS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return median(times)


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
    rate = int((batch["labels"] != IGNORED).sum()) / seconds(lambda: step_ours(batch))
    plain_rate = BATCH * PLAIN_STEPS / seconds(lambda: [step_plain(window) for window in windows])
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


def playing(settings: DistillationSettings, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Milliseconds a step over all 24 episodes: of as many rollouts at once as the stage evaluate makes, and of one."""
    objective = build(settings, FACTS).eval()
    run, together = exported(objective, settings), len(TASKS) * ROLLOUTS
    cached, encoded = (step_of(kind, objective, run, settings, batch["tokens"], together) for kind in ("cached", "encoded"))
    cached_alone, encoded_alone = (
        step_of(kind, objective, run, settings, batch["tokens"], 1) for kind in ("cached", "encoded")
    )
    return {
        "rollouts": together,
        "cached_ms": cached * 1000,
        "encoding_again_ms": encoded * 1000,
        "ratio": encoded / cached,
        "cached_alone_ms": cached_alone * 1000,
        "encoding_again_alone_ms": encoded_alone * 1000,
        "ratio_alone": encoded_alone / cached_alone,
    }


def step_of(
    kind: str, objective: DistillationObjective, run: Run, settings: DistillationSettings, tokens: torch.Tensor, num: int
) -> float:
    """Seconds a step of `num` rollouts; of encoding again the mean over some lengths of the context."""
    tasks, keys = np.resize(np.array(TASKS), (num, 2)), [str(number) for number in range(num)]
    if kind == "cached":
        return seconds(lambda: play(run, tasks, keys, settings.train, FACTS)) / tokens.shape[1]
    many = tokens.repeat(-(-num // len(tokens)), 1, 1)[:num]
    ends = range(EVERY // 2, tokens.shape[1], EVERY)

    @torch.inference_mode()
    def again() -> None:
        for end in ends:
            objective.learner(many[:, :end])

    return seconds(again) / len(ends)


def exported(objective: DistillationObjective, settings: DistillationSettings) -> Run:
    """The step as ONNX Runtime has it."""
    with tempfile.TemporaryDirectory() as folder:
        graph = graphs(objective.learner, settings.train, FACTS)["step"]
        write_onnx(graph, Path(folder) / "graphs" / "step.onnx", settings.export)
        described = {"workload": "algorithm_distillation", "settings": {}, "facts": {}, "recipe": "fp32"}
        write_json(Path(folder) / "artifact.json", {**described, "graphs": {"step": describe_graph("step", graph)}})
        return open_run(Path(folder), threads=1)


def collecting() -> dict[str, float]:
    """Seconds a task, for as many streams and steps in each way."""
    tasks = np.repeat(Darkroom.tasks(), STREAMS, axis=0)

    def collect(source: str) -> float:
        rng, began = np.random.default_rng(0), time.process_time()
        learner = source_named(source)(Darkroom, tasks, rng, episodes=PPO_EPISODES)
        learn(learner, Darkroom(tasks), rng, episodes=PPO_EPISODES, noise=0.0)
        return (time.process_time() - began) / len(Darkroom.tasks())

    ours, explorer, reference = collect("ppo"), collect("explorer"), stable_baselines()
    return {
        "ppo_seconds_a_task": ours,
        "explorer_seconds_a_task": explorer,
        "stable_baselines3_seconds_a_task": reference,
        "streams": STREAMS,
        "steps": PPO_EPISODES * Darkroom.horizon,
        "ratio": reference / ours,
        "ratio_of_the_explorer": reference / explorer,
    }


def stable_baselines() -> float:
    """Seconds of Stable-Baselines3's PPO for one goal."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    rooms = make_vec_env(lambda: GymnasiumRoom("darkroom", (5, 5)), n_envs=STREAMS, seed=0)
    made = PPO("MlpPolicy", rooms, learning_rate=3e-4, n_steps=80, batch_size=40, n_epochs=20, seed=0, device="cpu")
    began = time.process_time()
    made.learn(PPO_EPISODES * Darkroom.horizon * STREAMS)
    return time.process_time() - began


if __name__ == "__main__":
    main()
