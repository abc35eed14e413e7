"""What is learnt does not depend on how a batch is cut, and the weights it leaves are Ultralytics' own."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from contracts.records import Records
from contracts.workload import ROOT
from engine.normalization import GhostStatistics
from tests.conftest import Scenes
from workloads.segmentation.dataset import SegmentationDataset
from workloads.segmentation.objective import SegmentationObjective, build, make_optimizer, save
from workloads.segmentation.settings import SegmentationTrain

SETTINGS = SegmentationTrain.model_validate(
    {"image_size": 64, "global_batch": 8, "ghost_batch": 2, "augmentation": {"hsv_h": 0, "hsv_s": 0, "hsv_v": 0}}
)
NUM_SCENES = 8


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(scenes: Scenes) -> SegmentationDataset:
    records = Records.open(scenes.records, root=scenes.raw).split("train")
    return SegmentationDataset(records, SETTINGS, scenes.facts["classes"], training=True)


def _objective(scenes: Scenes, settings: SegmentationTrain = SETTINGS) -> SegmentationObjective:
    torch.manual_seed(0)
    return build(settings, scenes.facts["classes"], pretrained=False)


def _batch(dataset: SegmentationDataset, indices: range) -> dict[str, torch.Tensor]:
    return dataset.collate([dataset.item(index, None, draw=0, progress=0) for index in indices])


@pytest.fixture(scope="module")
def trained(scenes: Scenes, dataset: SegmentationDataset) -> SegmentationObjective:
    """An objective that knows NUM_SCENES scenes nearly by heart."""
    settings = SETTINGS.model_copy(update={"ghost_batch": NUM_SCENES})
    objective = _objective(scenes, settings).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=4e-3)
    batch = _batch(dataset, range(NUM_SCENES))
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 250)
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimizer.step()
    return objective.eval()


@pytest.fixture(scope="module")
def saved(scenes: Scenes, trained: SegmentationObjective, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "best.pt"
    save(trained, path, SETTINGS, scenes.facts["classes"])
    return path


@pytest.fixture(scope="module")
def yolo_layout(scenes: Scenes, dataset: SegmentationDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scenes as a data set of Ultralytics; gives its YAML."""
    folder = tmp_path_factory.mktemp("yolo")
    for name in ("images/val", "labels/val"):
        (folder / name).mkdir(parents=True)
    for index in range(NUM_SCENES):
        record = dataset.records[index]
        (folder / f"images/val/{index}.jpg").write_bytes((scenes.raw / record.inputs["image"]).read_bytes())
        lines = []
        for one in record.targets["objects"]:
            shares = [
                value / (record.inputs["height"] if at % 2 else record.inputs["width"])
                for at, value in enumerate(one["polygons"][0])
            ]
            lines.append(" ".join([str(scenes.facts["classes"].index(one["name"])), *(f"{value:.6f}" for value in shares)]))
        (folder / f"labels/val/{index}.txt").write_text("\n".join(lines) + "\n")
    names = dict(enumerate(scenes.facts["classes"]))
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"path": str(folder), "train": "images/val", "val": "images/val", "names": names})
    )
    return folder / "data.yaml"


def _micro(
    objective: SegmentationObjective, dataset: SegmentationDataset, size: int
) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss over a batch of 8 taken in micro-batches of `size`, and its gradients."""
    objective = deepcopy(objective).train()
    GhostStatistics(objective, ghost_batch=2, num_ghosts=4)
    total = 0.0
    for start in range(0, 8, size):
        out = objective(_batch(dataset, range(start, start + size)))
        loss = out["loss"] * out["weight"] / 4
        loss.backward()
        total += float(loss.detach())
    return total, {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("size", [2, 4])
def test_the_loss_is_the_same_however_a_batch_is_cut(scenes: Scenes, dataset: SegmentationDataset, size: int) -> None:
    objective = _objective(scenes)
    whole, gradients = _micro(objective, dataset, 8)
    cut, others = _micro(objective, dataset, size)
    assert cut == pytest.approx(whole, rel=1e-6)
    assert gradients.keys() == others.keys()
    largest = max(float(value.abs().max()) for value in gradients.values())
    assert max(float((gradients[name] - others[name]).abs().max()) for name in gradients) < 1e-5 * largest


def test_the_ghost_batches_weigh_alike_and_the_parts_make_the_loss(scenes: Scenes, dataset: SegmentationDataset) -> None:
    out = _objective(scenes).train()(_batch(dataset, range(6)))
    assert float(out["weight"]) == 3
    parts = {name: float(value) for name, value in out.items() if name not in ("loss", "weight")}
    assert set(parts) == {"box_loss", "seg_loss", "cls_loss", "dfl_loss"}
    assert sum(parts.values()) == pytest.approx(float(out["loss"].detach()), rel=1e-5)


def test_the_distances_to_the_sides_of_boxes_begin_at_their_entropy(scenes: Scenes, dataset: SegmentationDataset) -> None:
    """Where the boxes that fresh heads find fit those of the objects; where they do not, both count less."""
    objective = _objective(scenes, SETTINGS.model_copy(update={"ghost_batch": 8})).train()
    entropy = 1.5 * math.log(8)
    assert objective.expected_loss == {"dfl_loss": (0.0, pytest.approx(entropy))}
    assert float(objective(_batch(dataset, range(8)))["dfl_loss"]) == pytest.approx(entropy, rel=0.1)
    small = SETTINGS.model_copy(update={"image_size": 32})
    records = SegmentationDataset(dataset.records, small, scenes.facts["classes"], training=True)
    assert 0 <= float(objective(_batch(records, range(8)))["dfl_loss"]) < 0.1 * entropy


def test_of_pretrained_weights_nothing_is_expected_and_it_is_said_why(scenes: Scenes, saved: Path) -> None:
    settings = SETTINGS.model_copy(update={"model": str(saved)})
    knowing = build(settings, scenes.facts["classes"], pretrained=True).expected_loss
    assert isinstance(knowing, str) and f"its weights come from {saved}" in knowing
    assert build(settings, scenes.facts["classes"], pretrained=False).expected_loss == _objective(scenes).expected_loss


def test_an_object_counts_that_has_a_box_and_a_mask(scenes: Scenes, dataset: SegmentationDataset) -> None:
    objective, batch = _objective(scenes), _batch(dataset, range(4))
    num = len(batch["cls"])
    assert num > 4 and objective.supervised(batch) == (num, num)
    assert objective.supervised({**batch, "masks": batch["masks"] * 0}) == (0, num)
    assert objective.supervised({**batch, "batch_idx": batch["batch_idx"][:0]}) == (0, num)
    first = int((batch["batch_idx"] == 0).sum())
    gone = torch.cat([batch["masks"][:1] * 0, batch["masks"][1:]])
    assert objective.supervised({**batch, "masks": gone}) == (num - first, num)
    assert objective.supervised({**batch, "masks": batch["masks"] * 0, "batch_idx": batch["batch_idx"][:0]}) == (0, 0)


@pytest.mark.parametrize("empty", ["every picture", "one ghost batch"])
def test_pictures_without_objects_give_a_finite_loss_and_gradients(
    scenes: Scenes, dataset: SegmentationDataset, empty: str
) -> None:
    batch = _batch(dataset, range(4))
    kept = batch["batch_idx"] >= (4 if empty == "every picture" else 2)
    batch |= {name: batch[name][kept] for name in ("batch_idx", "cls", "bboxes")}
    batch["masks"][: 4 if empty == "every picture" else 2] = 0
    objective = _objective(scenes).train()
    out = objective(batch)
    out["loss"].backward()
    assert torch.isfinite(out["loss"]) and float(out["cls_loss"]) > 0
    gradients = [value.grad for value in objective.parameters() if value.grad is not None]
    assert len(gradients) > 50
    assert all(torch.isfinite(value).all() for value in gradients)
    assert any(value.abs().max() > 0 for value in gradients)


def test_decay_reaches_weights_and_neither_biases_nor_norms(scenes: Scenes) -> None:
    objective = _objective(scenes)
    settings = SETTINGS.model_copy(update={"optimizer": "SGD", "learning_rate": 0.01, "weight_decay": 0.0005})
    decayed, plain = make_optimizer(objective, settings).param_groups
    assert (decayed["weight_decay"] * decayed["lr"], plain["weight_decay"]) == (pytest.approx(0.0005 * 0.01), 0)
    assert decayed["lr"] == plain["lr"] == pytest.approx(0.08)
    assert {value.ndim for value in plain["params"]} == {1}
    trainable = sum(value.requires_grad for value in objective.parameters())
    assert len(decayed["params"]) + len(plain["params"]) == trainable


def test_the_saved_weights_open_with_yolo_and_predict_the_same(
    scenes: Scenes, dataset: SegmentationDataset, trained: SegmentationObjective, saved: Path
) -> None:
    from ultralytics import YOLO

    opened: Any = YOLO(str(saved))
    assert opened.task == "segment"
    assert opened.names == dict(enumerate(scenes.facts["classes"]))
    images = _batch(dataset, range(4))["images"].float() / 255
    with torch.no_grad():
        ours, theirs = (_flat(model.eval()(images)[0]) for model in (trained.model, opened.model))
    assert len(ours) == len(theirs) >= 1
    assert float(ours[0][:, 4:].max()) > 0.1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def _flat(value: Any) -> list[torch.Tensor]:
    """The tensors among nested predictions."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value if isinstance(part, torch.Tensor | tuple | list) for tensor in _flat(part)]


def test_saving_leaves_the_objective_as_it_was(scenes: Scenes, saved: Path, trained: SegmentationObjective) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.train()
    save(trained, saved.with_name("again.pt"), SETTINGS, scenes.facts["classes"])
    assert trained.training
    assert all(torch.equal(value, before[name]) for name, value in trained.eval().state_dict().items())


def test_yolo_val_of_the_file_measures_the_weights_that_were_saved(
    trained: SegmentationObjective, saved: Path, yolo_layout: Path, tmp_path: Path
) -> None:
    from ultralytics import YOLO
    from ultralytics.models.yolo.segment import SegmentationValidator

    how = {
        "data": str(yolo_layout),
        "imgsz": 64,
        "batch": 4,
        "workers": 0,
        "plots": False,
        "device": "cpu",
        "verbose": False,
    }
    of_file = YOLO(str(saved)).val(**how, project=str(tmp_path), name="file").results_dict
    direct = SegmentationValidator(
        args={**how, "task": "segment", "mode": "val", "model": "", "rect": True}, save_dir=tmp_path
    )
    of_weights = direct(model=deepcopy(trained.model).to(memory_format=torch.contiguous_format))
    for name in ("metrics/mAP50-95(B)", "metrics/mAP50-95(M)", "metrics/mAP50(B)", "metrics/mAP50(M)"):
        assert of_file[name] == pytest.approx(of_weights[name], abs=0.001)
        assert of_file[name] > 0.05


def test_a_network_first_built_on_the_meta_device_leaves_nothing_of_it_to_the_next() -> None:
    code = (
        "import contextlib, torch\nfrom workloads.segmentation.yolo import make_model\n"
        "with contextlib.suppress(RuntimeError), torch.device('meta'):\n    make_model('digits-seg', ['a'], pretrained=False)\n"
        "make_model('digits-seg', ['a'], pretrained=False).to('cpu').eval()(torch.zeros(1, 3, 64, 64))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
