"""The model: what it sees, what it is asked, and that a step with a cache is a step of the whole."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.use import preset_file
from contracts.errors import SlipwayError
from contracts.settings import read_params, validate
from contracts.workload import Arrays, Run
from engine.torch_runtime import torch_run
from serving.runtime import open_run
from tasks.export import describe_graph, write_onnx
from tasks.shipping.quantizing import dynamic_int8
from tests.conftest import ROOT
from workloads.algorithm_distillation.dataset import HistoryDataset
from workloads.algorithm_distillation.graph import graphs
from workloads.algorithm_distillation.moments import ACTION, returns
from workloads.algorithm_distillation.objective import DistillationObjective, build, make_optimizer
from workloads.algorithm_distillation.predicting import imitations
from workloads.algorithm_distillation.rolling import chosen, imitated, play, read
from workloads.algorithm_distillation.saving import load, save
from workloads.algorithm_distillation.scoring import accuracies
from workloads.algorithm_distillation.settings import DistillationSettings
from workloads.algorithm_distillation.tokens import IGNORED, Vocabulary, labels_of, tokens_of

from .conftest import Tiny


def settings_with(tiny: Tiny, window: int | None) -> DistillationSettings:
    return tiny.settings.model_copy(update={"train": tiny.settings.train.model_copy(update={"window": window})})


def fresh(tiny: Tiny, *, strong: bool = False, window: int | None = None) -> DistillationObjective:
    """An objective with fresh weights; `strong` ones make every part of the network matter."""
    torch.manual_seed(0)
    objective = build(settings_with(tiny, window), tiny.facts).eval()
    if strong:
        with torch.no_grad():
            for value in objective.parameters():
                value.copy_(torch.randn_like(value) * 0.3)
    return objective


def batch_of(tiny: Tiny, num: int) -> dict[str, torch.Tensor]:
    dataset = HistoryDataset(tiny.records.split("train"), tiny.facts)
    return dataset.collate([dataset.item(index, None, draw=0, progress=0) for index in range(num)])


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


@pytest.mark.parametrize("window", [None, 6, 7])
def test_a_rollout_asks_the_model_exactly_what_training_asked(tiny: Tiny, window: int | None) -> None:
    """Also where windows are compressed: at their ends alone, as often as in training, from the same latents. The original
    compressed again at every step, to depths that it was never trained at."""
    settings = settings_with(tiny, window).train
    learner = fresh(tiny, strong=True, window=window).learner
    run = torch_run(graphs(learner, settings, tiny.facts), "cpu")
    asked: list[str] = []
    logits: list[np.ndarray] = []

    def listening(graph: str, /, **arrays: np.ndarray) -> Arrays:
        asked.append(graph)
        found = run(graph, **arrays)
        if graph == "step":
            logits.append(found["logits"])
        return found

    history = play(listening, np.array([[0, 8], [7, 7]]), ["a", "b"], settings, tiny.facts)
    tokens = tokens_of(history, Vocabulary.of(tiny.facts)).reshape(2, -1, 7)
    with torch.no_grad():
        wanted = learner(torch.from_numpy(tokens))
    assert torch.allclose(torch.from_numpy(np.stack(logits, axis=1)), wanted, atol=2e-4)
    assert asked.count("compress") == (0 if window is None else 3)


@pytest.mark.parametrize("window", [None, 6])
def test_evaluation_finds_of_a_sources_actions_what_the_loss_says_is_found(tiny: Tiny, window: int | None) -> None:
    """At every depth, though it reads moment by moment through the graphs that ship."""
    settings, objective = settings_with(tiny, window).train, fresh(tiny, strong=True, window=window)
    histories = np.array(tiny.histories.array("part-00000")[:2])
    right, targets = imitated(
        torch_run(graphs(objective.learner, settings, tiny.facts), "cpu"), histories, settings, tiny.facts
    )
    tokens = tokens_of(histories, Vocabulary.of(tiny.facts)).reshape(2, -1, 7)
    told = objective({"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels_of(histories)).reshape(2, -1)})
    wanted = {name: float(value) for name, value in told.items() if name.startswith("accuracy")}
    found = accuracies(right.sum(0), targets.sum(0), window)
    assert {name.removeprefix("action_"): value for name, value in found.items()} == pytest.approx(wanted)
    assert len(found) == (1 if window is None else 5)


def test_histories_are_shown_of_the_first_learner_on_each_test_task_and_none_of_val(tiny: Tiny) -> None:
    """Val is scored after every epoch, and timed."""
    told = np.zeros((1, 5), np.float32)

    def run(graph: str, /, *, tokens: np.ndarray, **arrays: np.ndarray) -> Arrays:
        return {"logits": told.repeat(len(tokens), 0), "fresh": np.zeros((len(tokens), 3, 2, 2, 32), np.float32)}

    test = list(tiny.records.split("test"))
    shown = imitations(run, tiny.records.split("test"), tiny.settings, tiny.facts)
    assert [*shown] == [row.key for row in test if row.inputs["learner"] == 0] and len(shown) == 8 < len(test)
    for row in test[:8]:
        if row.key in shown:
            labels = labels_of(tiny.histories.array(row.inputs["part"])[row.inputs["row"]][None])
            assert shown[row.key] == {
                "right": (labels == 0).sum((0, 2)).tolist(),
                "targets": (labels != IGNORED).sum((0, 2)).tolist(),
            }
    assert imitations(run, tiny.records.split("val"), tiny.settings, tiny.facts) == {}


def test_what_is_before_a_window_is_known_by_the_latents_alone(tiny: Tiny) -> None:
    learner, tokens = fresh(tiny, strong=True, window=6).learner, batch_of(tiny, 1)["tokens"]
    changed = tokens.clone()
    changed[:, 30, 4] = (changed[:, 30, 4] + 1) % 10
    one, other = learner(tokens)[0], learner(changed)[0]
    assert torch.equal(one[:30], other[:30])
    assert not any(torch.equal(one[place], other[place]) for place in (31, 127, 300, 503))
    assert learner.compressor is not None
    with torch.no_grad():
        learner.compressor.norm.weight.zero_()
    assert torch.equal(learner(tokens)[0, 126:], learner(changed)[0, 126:])


def test_the_accuracy_of_each_depth_is_told(tiny: Tiny) -> None:
    found = fresh(tiny, window=6)(batch_of(tiny, 2))
    depths = [float(found[f"accuracy_depth_{depth}"]) for depth in range(4)]
    assert float(found["accuracy"]) == pytest.approx(sum(depths) / 4, abs=0.02)
    assert "accuracy_depth_4" not in found


def test_every_weight_of_the_compressor_is_taught(tiny: Tiny) -> None:
    objective = fresh(tiny, window=6)
    objective(batch_of(tiny, 2))["loss"].backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in objective.parameters())


def test_a_window_as_long_as_the_histories_is_refused(tiny: Tiny) -> None:
    with pytest.raises(SlipwayError, match="train.window = 24 leaves nothing to compress in histories of 24 episodes"):
        fresh(tiny, window=24)


def test_what_lies_behind_the_position_is_not_looked_at(tiny: Tiny) -> None:
    learner, tokens = fresh(tiny, strong=True).learner, batch_of(tiny, 1)["tokens"]
    cache = torch.randn(6, 1, 2, 64, 32)
    position = torch.tensor([10])
    dirty = cache.clone()
    dirty[..., 10:, :] = 1e4
    one, other = (learner.step(tokens[:, 10], position, list(one))[0] for one in (cache, dirty))
    assert torch.equal(one, other)
    dirty[..., 3, :] += 1
    assert not torch.allclose(one, learner.step(tokens[:, 10], position, list(dirty))[0])


@dataclass(frozen=True)
class Shipped:
    """The graphs of a learner by torch, and the folder that ONNX Runtime opens."""

    window: int | None
    by_torch: Run
    folder: Path


@pytest.fixture(scope="module", params=[6, None], ids=["compressed", "plain"])
def shipped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shipped:
    home, window = tmp_path_factory.mktemp("export"), request.param
    made = graphs(fresh(tiny, strong=True, window=window).learner, settings_with(tiny, window).train, tiny.facts)
    for name, graph in made.items():
        write_onnx(graph, home / "graphs" / f"{name}.onnx", tiny.settings.export)
    described = {"workload": "algorithm_distillation", "settings": {}, "facts": {}, "recipe": "fp32"}
    described["graphs"] = {name: describe_graph(name, graph) for name, graph in made.items()}
    (home / "artifact.json").write_text(json.dumps(described), encoding="utf-8")
    return Shipped(window, torch_run(made, "cpu"), home)


def test_the_exported_step_does_the_same_actions_as_torch_on_a_thousand_steps(tiny: Tiny, shipped: Shipped) -> None:
    tasks, keys = np.array([[0, 8], [8, 8], [5, 5]]), ["a", "b", "c"]
    runs = (shipped.by_torch, open_run(shipped.folder, threads=1))
    one, other = (play(run, tasks, keys, settings_with(tiny, shipped.window).train, tiny.facts) for run in runs)
    assert one[:, :, :-1, ACTION].size > 1000
    assert np.array_equal(one, other)


def test_a_rollout_is_the_same_alone_and_among_others(tiny: Tiny, shipped: Shipped) -> None:
    tasks, run = np.array([[0, 8], [8, 8]]), open_run(shipped.folder, threads=1)
    settings = settings_with(tiny, shipped.window).train
    together = play(run, tasks, ["a", "b"], settings, tiny.facts)
    assert np.array_equal(play(run, tasks[1:], ["b"], settings, tiny.facts)[0], together[1])
    assert not np.array_equal(play(run, tasks[1:], ["c"], settings, tiny.facts)[0], together[1])


def test_int8_finds_the_actions_that_the_learner_finds(tiny: Tiny, shipped: Shipped, tmp_path: Path) -> None:
    """Both graphs, as the ladder's rung for this workload makes them, on a history of its own."""
    settings, vocabulary = settings_with(tiny, shipped.window).train, Vocabulary.of(tiny.facts)
    shutil.copytree(shipped.folder, tmp_path / "int8")
    for file in (shipped.folder / "graphs").iterdir():
        dynamic_int8(file, tmp_path / "int8" / "graphs" / file.name)
    history = play(shipped.by_torch, np.array([[8, 8]]), ["a"], settings, tiny.facts)
    runs = (shipped.by_torch, open_run(tmp_path / "int8", threads=1))
    one, other = (np.array([logits[0] for _, _, logits in read(run, history, settings, vocabulary)]) for run in runs)
    assert (one.argmax(1) == other.argmax(1)).mean() > 0.95 and not np.array_equal(one, other)


@pytest.mark.parametrize("recipe", ["int8", "int8_wide_head"])
def test_recipes_that_need_ranges_of_activations_are_refused(recipe: str) -> None:
    with pytest.raises(SlipwayError, match=rf"{recipe}: the scores of .* infinite.*; int8_dynamic needs no ranges"):
        validate(DistillationSettings, {"quantize": {"recipes": [recipe]}}, where="algorithm_distillation")


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


@pytest.mark.parametrize(("preset", "told"), [("default", "plain, 156k"), ("compressed", "259k"), ("2m", "2.0M")])
def test_the_guide_tells_how_many_parameters_a_preset_has(tiny: Tiny, preset: str, told: str) -> None:
    name = "algorithm_distillation"
    settings = DistillationSettings.model_validate(read_params(preset_file(name, preset)))
    num = sum(value.numel() for value in build(settings, tiny.facts).parameters())
    assert told.endswith(f"{num / 1e6:.1f}M" if num > 1e6 else f"{num / 1e3:.0f}k")
    guide = (ROOT / "docs" / "workloads" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(rf"`{preset}` \([^)]*{re.escape(told)}", guide)


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
    assert sum("right" in one for one in found) == 8
    assert returns(tiny.histories.array("part-00000")).shape == (162, 24)
