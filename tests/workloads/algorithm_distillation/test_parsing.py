"""From histories to records, splits and batches: what is held out, and what is a target."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.errors import SlipwayError
from contracts.records import Record, Records, write_records
from contracts.workload import load
from tasks import parse as stage
from workloads.algorithm_distillation.dataset import HistoryDataset
from workloads.algorithm_distillation.environments import Darkroom
from workloads.algorithm_distillation.moments import ACTION, PLACE, RANDOM, REWARD
from workloads.algorithm_distillation.parsing import COMPARABLE, held_out, parse, scarcity, schema
from workloads.algorithm_distillation.quality import look
from workloads.algorithm_distillation.settings import HistoryParse
from workloads.algorithm_distillation.splitting import held_out_of, split_of, split_tasks
from workloads.algorithm_distillation.tokens import IGNORED, NOWHERE, Vocabulary, labels_of, tokens_of

from .conftest import Tiny

CORNER = 8


def test_every_split_has_near_tasks_and_far_ones_and_a_corner() -> None:
    difficulty = Darkroom.difficulty(Darkroom.tasks())
    for seed in range(5):
        splits = np.array(split_tasks(difficulty, (0.8, 0.1, 0.1), seed=seed))
        assert Counter(splits.tolist()) == {"train": 65, "val": 8, "test": 8}
        for name in ("train", "val", "test"):
            held = difficulty[splits == name]
            assert held.max() == CORNER and held.min() <= 2
            assert held.mean() == pytest.approx(difficulty.mean(), abs=0.6)


def test_another_seed_holds_out_other_tasks() -> None:
    difficulty = Darkroom.difficulty(Darkroom.tasks())
    one, other = (split_tasks(difficulty, (0.8, 0.1, 0.1), seed=seed) for seed in (0, 1))
    assert one != other and one == split_tasks(difficulty, (0.8, 0.1, 0.1), seed=0)


def test_too_few_tasks_for_a_split_are_refused() -> None:
    with pytest.raises(SlipwayError, match="0.1 of 4 tasks is less than one for test"):
        split_tasks(np.arange(4), (0.8, 0.1, 0.1), seed=0)


def test_a_task_stands_in_one_split_and_a_held_out_one_keeps_so_many_learners(tiny: Tiny) -> None:
    found = [one for one in parse(tiny.raw, HistoryParse(rollouts=1)) if isinstance(one, Record)]
    by_task: dict[str, set[str | None]] = {}
    for record in found:
        by_task.setdefault(record.group, set()).add(record.split)
    assert all(len(splits) == 1 for splits in by_task.values()) and len(by_task) == 81
    assert Counter(record.split for record in found) == {"train": 130, "val": 8, "test": 8}


def test_an_unknown_environment_is_refused(tmp_path: Path) -> None:
    index = {"environment": "nowhere", "source": "s", "episodes": 1, "noise": 0, "tasks": [], "parts": []}
    (tmp_path / "histories.json").write_text(json.dumps(index))
    with pytest.raises(SlipwayError, match="'nowhere', which is not known here; known: darkroom"):
        next(parse(tmp_path, HistoryParse()))


def test_a_token_says_where_one_is_was_and_what_happened_between(tiny: Tiny) -> None:
    vocabulary = Vocabulary.of(tiny.facts)
    history = tiny.histories.array("part-00000")[:1]
    tokens = tokens_of(history, vocabulary)
    for episode, step in ((0, 0), (3, 0), (0, 1), (5, 7), (23, 20)):
        now, before = history[0, episode, step], history[0, episode, step - 1]
        x, y = divmod(int(now[PLACE]), 9)
        past = [*divmod(int(before[PLACE]), 9), int(before[ACTION]) * 2 + int(now[REWARD])]
        assert tokens[0, episode, step].tolist() == [x, y, *(past if step else [NOWHERE, NOWHERE, 10]), step, episode]
    assert all((tokens[..., place] < size).all() for place, size in enumerate(vocabulary.sizes))


def test_targets_are_at_every_meant_step_of_the_whole_history_and_nowhere_else(tiny: Tiny) -> None:
    """The original's came from the first 160 of 1,000 steps alone, where its source still acted at random."""
    histories = np.array(tiny.histories.array("part-00000"))
    labels = labels_of(histories)
    meant = histories[:, :, :-1, RANDOM] == 0
    assert np.array_equal(labels[:, :, :-1] != IGNORED, meant)
    assert (labels[:, :, -1] == IGNORED).all()
    assert np.array_equal(labels[:, :, :-1][meant], histories[:, :, :-1, ACTION][meant])
    assert (labels[:, -1, :-1] != IGNORED).mean() > 0.85


def test_a_batch_holds_whole_histories_of_its_own_records(tiny: Tiny) -> None:
    train = tiny.records.split("train")
    dataset = HistoryDataset(train, tiny.facts)
    batch = dataset.collate([dataset.item(index, None, draw=0, progress=0) for index in (0, 77, 5)])
    assert batch["tokens"].shape == (3, 24 * 21, 7) and batch["labels"].shape == (3, 24 * 21)
    for row, index in enumerate((0, 77, 5)):
        inputs = train[index].inputs
        history = tiny.histories.array(inputs["part"])[inputs["row"]][None]
        own = tokens_of(history, dataset.vocabulary).reshape(-1, 7)
        assert torch.equal(batch["tokens"][row], torch.from_numpy(own))
        rewarded = batch["tokens"][row][:, 4].numpy() % 2 == 1
        assert rewarded.sum() == sum(train[index].targets["returns"])


def test_what_the_source_shows_stands_in_the_summary_that_the_report_shows(tiny: Tiny, tmp_path: Path) -> None:
    summary = stage.parse(load("algorithm_distillation"), tiny.settings, tiny.raw, tmp_path / "parse", processes=1)
    assert summary["findings"] == tiny.facts["findings"] and summary["findings"][:3] == look(tiny.records).findings
    assert json.loads((tmp_path / "parse" / "summary.json").read_text())["findings"] == summary["findings"]


def test_that_held_out_tasks_have_fewer_learners_than_rollouts_is_said(tiny: Tiny) -> None:
    """Two on each of the 81 tasks, and 8 rollouts asked for by default."""
    assert tiny.facts["findings"][3:] == scarcity(tiny.records, 8) and scarcity(tiny.records, 2) == []
    assert scarcity(tiny.records, 8)[0].startswith(
        "note: 16 of the 16 held-out tasks have fewer learners (2) than parse.rollouts = 8"
    )


def test_facts_tell_which_tasks_were_trained_on(tiny: Tiny) -> None:
    """In a line for each split: they travel with the model. Those of earlier versions had none, and are read all the same."""
    for name, num in (("train", 65), ("val", 8), ("test", 8)):
        tasks = {tuple(row.inputs["task"]) for row in tiny.records.split(name)}
        assert len(tiny.facts["splits"][name].split()) == len(tasks) == num
        assert {split_of(task, tiny.facts) for task in tasks} == {name}
    assert {tuple(task) for task in held_out_of(tiny.facts)} == {
        tuple(row.inputs["task"]) for row in tiny.records.split("test")
    }
    assert split_of((9, 9), tiny.facts) == "none" and split_of((8, 8), {}) is None and held_out_of({}) == []
    assert held_out_of({"splits": {"train": "1,1", "val": "2,2 8,0", "test": ""}}) == [[2, 2], [8, 0]]


def test_models_compare_where_environment_episodes_and_held_out_tasks_agree(tiny: Tiny, tmp_path: Path) -> None:
    assert tiny.facts["comparable"] == ["environment", "episodes", "held_out"] and tiny.facts.keys() > {*COMPARABLE}
    fewer = [record for record in tiny.records if record.split == "train" or record.inputs["learner"] == 0]
    assert held_out(written(tmp_path / "fewer", fewer)) == tiny.facts["held_out"], "other learners, the same tasks"
    swapped = {"val": "test", "test": "val"}
    other = [replace(record, split=swapped.get(record.split or "", record.split)) for record in tiny.records]
    assert held_out(written(tmp_path / "other", other)) != tiny.facts["held_out"]


def written(folder: Path, records: list[Record]) -> Records:
    inputs, targets = schema()
    write_records(folder, records, inputs=inputs, targets=targets, shares=(0.8, 0.1, 0.1))
    return Records.open(folder, root=folder)


def test_other_histories_are_another_run(tiny: Tiny) -> None:
    from workloads.algorithm_distillation.parsing import facts

    index = tiny.raw / "part-00000.npy"
    settings = HistoryParse()
    before, bytes_before = facts(tiny.raw, tiny.records, settings), index.read_bytes()
    try:
        index.write_bytes(bytes_before[:-1] + bytes([bytes_before[-1] ^ 1]))
        assert facts(tiny.raw, tiny.records, settings)["histories"] != before["histories"]
    finally:
        index.write_bytes(bytes_before)
