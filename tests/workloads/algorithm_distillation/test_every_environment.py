"""What the model is asked, plays, draws and ships in every environment, and what `slipway rollout` does with it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from contracts.workload import Arrays, Run
from engine.torch_runtime import torch_run
from serving.runtime import open_run
from tasks.export import describe_graph, write_onnx
from tests.loading import loaded
from workloads.algorithm_distillation.drawing import AGENT, GOAL, KEY, film, middle_of, picture
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.environments.room import Room
from workloads.algorithm_distillation.graph import graphs
from workloads.algorithm_distillation.model import Learner
from workloads.algorithm_distillation.moments import ACTION, PLACE, REWARD
from workloads.algorithm_distillation.rolling import play
from workloads.algorithm_distillation.settings import DistillationSettings
from workloads.algorithm_distillation.tokens import Vocabulary, tokens_of

EPISODES, KEYS = 5, ("a", "b", "c")
SETTINGS = DistillationSettings.model_validate(
    {"train": {"width": 16, "layers": 1, "window": 2, "latents": 3, "encoder_layers": 1}, "evaluate": {"last": 2}}
)


@dataclass(frozen=True)
class World:
    """An environment, some of its tasks and a small learner whose every weight matters."""

    kind: type[Room]
    tasks: np.ndarray
    learner: Learner

    @property
    def facts(self) -> dict[str, Any]:
        return {"environment": self.kind.name, "episodes": EPISODES}

    @property
    def run(self) -> Run:
        return torch_run(graphs(self.learner, SETTINGS.train, self.facts), "cpu")

    def played(self, run: Run) -> np.ndarray:
        return play(run, self.tasks, KEYS, SETTINGS.train, self.facts)


def world_of(name: str) -> World:
    kind = ENVIRONMENTS[name]
    tasks = kind.tasks()
    torch.manual_seed(0)
    learner = Learner(Vocabulary.of({"environment": name, "episodes": EPISODES}).sizes, SETTINGS.train).eval()
    with torch.no_grad():
        for value in learner.parameters():
            value.copy_(torch.randn_like(value) * 0.3)
    return World(kind, tasks[[1, len(tasks) // 2, -2]], learner)


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def world(request: pytest.FixtureRequest) -> World:
    return world_of(request.param)


def test_a_rollout_asks_the_model_exactly_what_training_asked(world: World) -> None:
    """Where windows are of 2 episodes of 5: the last one holds one episode alone."""
    run, asked = world.run, []

    def listening(graph: str, /, **arrays: np.ndarray) -> Arrays:
        found = run(graph, **arrays)
        asked.append(found.get("logits"))
        return found

    tokens = tokens_of(world.played(listening), Vocabulary.of(world.facts)).reshape(len(KEYS), -1, 7)
    logits = np.stack([one for one in asked if one is not None], axis=1)
    with torch.no_grad():
        wanted = world.learner(torch.from_numpy(tokens)).numpy()
    assert np.allclose(logits, wanted, atol=2e-4)
    assert sum(one is None for one in asked) == 2


def test_a_rollout_is_what_happens_in_the_rooms(world: World) -> None:
    history, rooms = world.played(world.run), world.kind(world.tasks)
    for episode in range(EPISODES):
        assert np.array_equal(history[:, episode, 0, PLACE], rooms.reset())
        for step in range(world.kind.horizon):
            places, rewards = rooms.step(history[:, episode, step, ACTION].astype(int))
            assert np.array_equal(history[:, episode, step + 1, PLACE], places)
            assert np.array_equal(history[:, episode, step + 1, REWARD], rewards)


def test_a_rollout_is_drawn_with_what_is_rewarded_in_it(world: World) -> None:
    history, task = world.played(world.run)[0], world.tasks[0]
    frames, drawn = film(history, task, world.facts), picture(history, task, world.facts)
    assert len(frames) == EPISODES * (world.kind.horizon + 1) and drawn.shape[1] == EPISODES * frames.shape[2]
    targets = world.kind.targets(task[None])[0]
    colours = {int(targets[-1]): GOAL} if len(targets) == 1 else {int(targets[-1]): GOAL, int(targets[0]): KEY}
    assert world.kind.start not in colours, "the agent would cover it"
    for place, colour in {**colours, world.kind.start: AGENT}.items():
        x, y = middle_of(place)
        assert tuple(frames[0, y, x].tolist()) == colour


@dataclass(frozen=True)
class Shipped:
    """A world and the folder of its exported model."""

    world: World
    folder: Path

    def rollout(self, *arguments: str) -> list[dict[str, Any]]:
        """What `slipway rollout` writes when it is called like this."""
        output = self.folder / "rollouts"
        told = ["--model", str(self.folder), "--output", str(output), "--no-films", "--threads", "1"]
        found = CliRunner().invoke(app, ["rollout", *arguments, *told])
        assert found.exit_code == 0, found.output
        return json.loads((output / "rollouts.json").read_text())


@pytest.fixture(scope="module", params=["dark_key_to_door", "darkroom_permuted"])
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    world, folder = world_of(request.param), tmp_path_factory.mktemp(request.param)
    made = graphs(world.learner, SETTINGS.train, world.facts)
    for name, graph in made.items():
        write_onnx(graph, folder / "graphs" / f"{name}.onnx", SETTINGS.export)
    described = {"workload": "algorithm_distillation", "settings": SETTINGS.model_dump(mode="json"), "facts": world.facts}
    described |= {"recipe": "fp32", "graphs": {name: describe_graph(name, graph) for name, graph in made.items()}}
    (folder / "artifact.json").write_text(json.dumps(described), encoding="utf-8")
    return Shipped(world, folder)


def test_the_exported_step_does_the_same_actions_as_torch(shipped: Shipped) -> None:
    assert np.array_equal(shipped.world.played(open_run(shipped.folder, threads=1)), shipped.world.played(shipped.world.run))


def test_another_seed_shares_no_rollout_and_a_task_named_twice_is_played_once(shipped: Shipped) -> None:
    task = ",".join(map(str, shipped.world.tasks[1]))
    one, other = (shipped.rollout(task, "--times", "4", "--seed", seed) for seed in ("0", "1"))
    actions = [json.dumps(found["actions"]) for found in (*one, *other)]
    assert len(set(actions)) == len({found["name"] for found in (*one, *other)}) == 8
    assert shipped.rollout(task, f" {task}", "--times", "4") == one


def test_without_a_task_one_is_played_that_was_held_out_and_every_line_says_what_is_known(
    shipped: Shipped, tmp_path: Path
) -> None:
    """The hardest of the test split. Models of earlier versions have no splits in their facts: the hardest of all is played."""
    kind = shipped.world.kind
    by_difficulty = kind.tasks()[np.argsort(-kind.difficulty(kind.tasks()), kind="stable")]
    hardest, second, third, other = (",".join(map(str, task)) for task in by_difficulty[[0, 1, -2, -1]].tolist())
    [earlier] = shipped.rollout()
    assert earlier["split"] is None and ",".join(map(str, earlier["task"])) == hardest
    told = json.loads((shipped.folder / "artifact.json").read_text())
    told["facts"]["splits"] = {"train": hardest, "val": "", "test": f"{third} {second}"}
    newer = shutil.copytree(shipped.folder, tmp_path / "newer")
    (newer / "artifact.json").write_text(json.dumps(told), encoding="utf-8")
    [own] = Shipped(shipped.world, newer).rollout()
    assert own["split"] == "test" and ",".join(map(str, own["task"])) == second
    command = ["rollout", hardest, second, other, "--model", str(newer), "--output", str(tmp_path / "out"), "--no-films"]
    said = CliRunner().invoke(app, command).output
    assert re.findall(r"\.0\.0 \((.*?)\): returns", said) == ["trained on", "held out", "not among its histories"]


def test_rolling_out_needs_no_torch(shipped: Shipped, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from cli.rollout import rollout\n"
        f"rollout(None, model=Path({str(shipped.folder)!r}), output=Path('found'), times=1, seed=0, films=True, threads=1)"
    )
    assert not loaded(code, tmp_path) & {"torch", "prefect", "dvc", "matplotlib", "pyarrow"}
    assert list((tmp_path / "found").glob("*.gif"))
