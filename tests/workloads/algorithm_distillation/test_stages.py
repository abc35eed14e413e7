"""Every environment goes through the stages: collected, parsed, looked at, made into batches, learnt from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cli.quality import quality
from contracts.files import read_json
from contracts.records import Records, read_facts
from contracts.workload import load, settings_of
from tasks import download, parse
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.tokens import IGNORED, Vocabulary

NAME = "algorithm_distillation"
TASKS, LEARNERS, EPISODES, BATCH = 20, 8, 8, 8
SETTINGS = {
    "download": {"num_tasks": TASKS, "num_samples": TASKS * LEARNERS, "episodes": EPISODES},
    "train": {"width": 32, "layers": 1, "learning_rate": 0.01},
    "evaluate": {"last": 2},
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_is_collected_in_an_environment_is_parsed_reported_and_learnt_from(
    environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = {**SETTINGS, "download": {**SETTINGS["download"], "environment": environment}}
    Path("params.yaml").write_text(json.dumps({NAME: section}), encoding="utf-8")
    for stage in (download, parse):
        stage.run(NAME)
    raw, parsed = Path("data/download") / NAME / "raw", Path("data/parse") / NAME
    facts, records = read_facts(parsed), Records.open(parsed, root=raw)
    assert facts["environment"] == environment and len(records) == TASKS * LEARNERS
    assert {split: len(tasks.split()) for split, tasks in facts["splits"].items()} == {"train": 16, "val": 2, "test": 2}

    quality(NAME, None)
    told = read_json(Path("data/quality") / NAME / "quality.json")
    assert told["fault"] is None and told["gain"] > 0.2 and told["rewarded"] > 0.5

    kind, settings, train = load(NAME), settings_of(NAME), records.split("train")
    dataset = kind.dataset(train, settings, facts, training=True)
    batch = dataset.collate([dataset.item(index, None, draw=0, progress=0) for index in range(BATCH)])
    vocabulary = Vocabulary.of(facts)
    assert batch["tokens"].shape == (BATCH, EPISODES * (ENVIRONMENTS[environment].horizon + 1), 7)
    assert (batch["tokens"] >= 0).all() and (batch["tokens"].amax((0, 1)) < torch.tensor(vocabulary.sizes)).all()
    rewards = batch["tokens"][..., 4] % vocabulary.num_rewards * (batch["tokens"][..., 4] < vocabulary.nothing)
    assert rewards.sum(1).tolist() == [sum(train[index].targets["returns"]) for index in range(BATCH)]
    assert 0.8 < (batch["labels"] != IGNORED).float().mean() < 0.95

    torch.manual_seed(0)
    objective = kind.build(settings, facts, pretrained=False).train()
    optimizer = kind.optimizer(objective, settings)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(5), abs=0.05) and losses[-1] < 0.85 * losses[0]
