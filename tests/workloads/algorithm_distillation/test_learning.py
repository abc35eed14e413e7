"""The model: what it sees, what it is asked, and that a step with a cache is a step of the whole."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.workload import Run
from engine.torch_runtime import torch_run
from serving.runtime import open_run
from tasks.export import describe_graph, write_onnx
from workloads.algorithm_distillation.dataset import HistoryDataset
from workloads.algorithm_distillation.graph import graphs
from workloads.algorithm_distillation.histories import ACTION, returns
from workloads.algorithm_distillation.objective import DistillationObjective, build, make_optimizer
from workloads.algorithm_distillation.rolling import Cache, chosen, play
from workloads.algorithm_distillation.saving import load, save
from workloads.algorithm_distillation.tokens import IGNORED

from .conftest import Tiny


def fresh(tiny: Tiny, *, strong: bool = False) -> DistillationObjective:
    """An objective with fresh weights; `strong` ones make every part of the network matter."""
    torch.manual_seed(0)
    objective = build(tiny.settings, tiny.facts).eval()
    if strong:
        with torch.no_grad():
            for value in objective.parameters():
                value.copy_(torch.randn_like(value) * 0.3)
    return objective


def batch_of(tiny: Tiny, num: int) -> dict[str, torch.Tensor]:
    dataset = HistoryDataset(tiny.records.split("train"), tiny.facts)
    return dataset.collate([dataset.item(index, None, progress=0) for index in range(num)])


def test_the_loss_begins_at_the_entropy_of_five_actions(tiny: Tiny) -> None:
    objective = fresh(tiny)
    assert float(objective(batch_of(tiny, 4))["loss"].detach()) == pytest.approx(objective.expected_loss, abs=0.05)
    assert objective.expected_loss == pytest.approx(math.log(5))


def test_random_steps_count_nothing(tiny: Tiny) -> None:
    """Neither in the loss nor in what it is a mean over; the weight is the number of targets."""
    objective, batch = fresh(tiny, strong=True), batch_of(tiny, 2)
    before = objective(batch)
    assert float(before["weight"]) == int((batch["labels"] != IGNORED).sum())
    logits = objective.learner(batch["tokens"])[batch["labels"] != IGNORED]
    wanted = torch.nn.functional.cross_entropy(logits, batch["labels"][batch["labels"] != IGNORED])
    assert float(before["loss"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)


def test_two_halves_weighted_give_the_loss_of_the_whole(tiny: Tiny) -> None:
    objective, batch = fresh(tiny, strong=True), batch_of(tiny, 4)
    whole = objective(batch)
    halves = [objective({name: value[part] for name, value in batch.items()}) for part in (slice(2), slice(2, 4))]
    losses, weights = (torch.stack([half[name].detach() for half in halves]) for name in ("loss", "weight"))
    mean = (losses * weights).sum() / weights.sum()
    assert float(mean) == pytest.approx(float(whole["loss"].detach()), rel=1e-6)


def test_nothing_later_is_seen(tiny: Tiny) -> None:
    learner, tokens = fresh(tiny, strong=True).learner, batch_of(tiny, 1)["tokens"]
    changed = tokens.clone()
    changed[:, 300:, 0] = (changed[:, 300:, 0] + 1) % 9
    one, other = learner(tokens), learner(changed)
    assert torch.equal(one[:, :300], other[:, :300]) and not torch.allclose(one[:, 300:], other[:, 300:])


def test_the_action_depends_on_the_first_episode_to_the_end(tiny: Tiny) -> None:
    learner, tokens = fresh(tiny, strong=True).learner, batch_of(tiny, 1)["tokens"]
    changed = tokens.clone()
    changed[:, 3, 4] = (changed[:, 3, 4] + 1) % 10
    assert (learner(tokens)[0, -1] - learner(changed)[0, -1]).abs().max() > 1e-4


def test_steps_with_a_cache_give_what_the_whole_gives_at_once(tiny: Tiny) -> None:
    """All of it: the original's evaluation left out a norm, and its cache ignored what came first."""
    learner, tokens = fresh(tiny, strong=True).learner, batch_of(tiny, 2)["tokens"]
    cache = Cache(2, tiny.settings.train)
    found = []
    with torch.no_grad():
        for place in range(tokens.shape[1]):
            logits, own = learner.step(tokens[:, place], torch.from_numpy(cache.position), torch.from_numpy(cache.values))
            cache.take_in(own.numpy())
            found.append(logits)
        wanted = learner(tokens)
    assert torch.allclose(torch.stack(found, 1), wanted, atol=2e-4)


def test_what_lies_behind_the_position_is_not_looked_at(tiny: Tiny) -> None:
    learner, tokens = fresh(tiny, strong=True).learner, batch_of(tiny, 1)["tokens"]
    cache = torch.randn(1, 3, 2, 2, 64, 32)
    position = torch.tensor([10])
    dirty = cache.clone()
    dirty[..., 10:, :] = 1e4
    one, other = (learner.step(tokens[:, 10], position, one)[0] for one in (cache, dirty))
    assert torch.equal(one, other)
    dirty[..., 3, :] += 1
    assert not torch.allclose(one, learner.step(tokens[:, 10], position, dirty)[0])


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The step by torch and by ONNX Runtime."""
    import json

    home = tmp_path_factory.mktemp("export")
    made = graphs(fresh(tiny, strong=True).learner, tiny.settings.train, tiny.facts)
    write_onnx(made["step"], home / "graphs" / "step.onnx", tiny.settings.export)
    described = {"workload": "algorithm_distillation", "settings": {}, "facts": {}, "recipe": "fp32"}
    (home / "artifact.json").write_text(
        json.dumps({**described, "graphs": {"step": describe_graph("step", made["step"])}}), encoding="utf-8"
    )
    return torch_run(made, "cpu"), open_run(home, threads=1)


def test_the_exported_step_does_the_same_actions_as_torch_on_a_thousand_steps(tiny: Tiny, runs: tuple[Run, Run]) -> None:
    tasks, keys = np.array([[0, 8], [8, 8], [5, 5]]), ["a", "b", "c"]
    one, other = (play(run, tasks, keys, tiny.settings.train, tiny.facts) for run in runs)
    assert one[:, :, :-1, ACTION].size > 1000
    assert np.array_equal(one, other)


def test_a_rollout_is_the_same_alone_and_among_others(tiny: Tiny, runs: tuple[Run, Run]) -> None:
    tasks = np.array([[0, 8], [8, 8]])
    together = play(runs[1], tasks, ["a", "b"], tiny.settings.train, tiny.facts)
    assert np.array_equal(play(runs[1], tasks[1:], ["b"], tiny.settings.train, tiny.facts)[0], together[1])
    assert not np.array_equal(play(runs[1], tasks[1:], ["c"], tiny.settings.train, tiny.facts)[0], together[1])


def test_actions_are_drawn_from_the_softmax() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4, 0.0 + 1e-12]]))
    found = chosen(np.repeat(logits, 1000, axis=0), (np.arange(1000) + 0.5) / 1000)
    assert np.bincount(found, minlength=5).tolist() == [100, 200, 300, 400, 0]


def test_a_few_steps_of_training_teach_it_something(tiny: Tiny) -> None:
    objective, batch = fresh(tiny).train(), batch_of(tiny, 4)
    optimizer = make_optimizer(objective, tiny.settings.train.model_copy(update={"learning_rate": 0.003}))
    first = None
    for _ in range(15):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        first = first if first is not None else float(loss.detach())
    assert float(objective(batch)["loss"].detach()) < 0.75 * (first or 0.0)


def test_saved_weights_open_again_without_code_in_them(tiny: Tiny, tmp_path: Path) -> None:
    learner = fresh(tiny, strong=True).learner
    save(learner, tmp_path, tiny.settings.train, tiny.facts, name="best")
    tokens = batch_of(tiny, 1)["tokens"]
    assert torch.equal(load(tmp_path / "best.pt")(tokens), learner(tokens))


def test_a_fresh_learner_gets_about_what_random_actions_get(tiny: Tiny) -> None:
    run = torch_run(graphs(fresh(tiny).learner, tiny.settings.train, tiny.facts), "cpu")
    records = tiny.records.split("test")
    from workloads.algorithm_distillation.predicting import measure

    found = list(measure(run, records, tiny.settings, tiny.facts))
    own, chance = (np.mean([np.mean(one[name]) for one in found]) for name in ("returns", "random"))
    assert own == pytest.approx(chance, abs=0.5)
    assert all(len(one["source"]) == len(one["returns"]) == 24 for one in found)
    assert returns(tiny.histories.array("part-00000")).shape == (162, 24)
