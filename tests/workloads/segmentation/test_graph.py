"""The graph of segmentation that ships: exact, detached from the objective, and known by its structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from contracts.settings import ExportSettings
from contracts.workload import Graph
from engine.torch_runtime import torch_run
from tasks.export import write_onnx
from tasks.shipping.quantizing import anatomy, prepare
from workloads.segmentation.graph import NAME, graphs
from workloads.segmentation.settings import SegmentationTrain
from workloads.segmentation.yolo import make_model

SIZE, CLASSES = 64, ("pole", "crossarm", "insulator")
SETTINGS = SegmentationTrain(image_size=SIZE)


@pytest.fixture(scope="module")
def objective() -> nn.Module:
    """A network with random weights and lived-in batch statistics."""
    torch.manual_seed(0)
    holder: Any = nn.Module()
    holder.model = make_model("digits-seg", CLASSES, pretrained=False)
    for module in holder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # pyright: ignore[reportOptionalMemberAccess]
            module.running_var.uniform_(0.5, 1.5)  # pyright: ignore[reportOptionalMemberAccess]
            module.weight.data.uniform_(0.5, 1.5)
    return holder.train()


@pytest.fixture(scope="module")
def graph(objective: nn.Module) -> Graph:
    return graphs(objective, SETTINGS)[NAME]


@pytest.fixture(scope="module")
def exported(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "segment.onnx"
    write_onnx(graph, path, ExportSettings())
    return path


def pictures(num: int) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8)


def test_camera_images_give_what_the_network_gives_for_rgb_between_0_and_1(objective: nn.Module, graph: Graph) -> None:
    images = pictures(2)
    found = torch_run({NAME: graph}, "cpu")(NAME, images=images)
    model: Any = objective.model
    model.eval()
    with torch.no_grad():
        (predictions, protos), _ = model(torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255)
    objective.train()
    for name, expected in (("predictions", predictions.numpy()), ("protos", protos.numpy())):
        assert np.abs(found[name] - expected).max() <= 1e-5 * np.ptp(expected)


def test_outputs_have_the_documented_layout(graph: Graph) -> None:
    found = torch_run({NAME: graph}, "cpu")(NAME, images=pictures(3))
    num_anchors = (SIZE // 8) ** 2 + (SIZE // 16) ** 2
    assert found["predictions"].shape == (3, 4 + len(CLASSES) + 16, num_anchors)
    assert found["protos"].shape == (3, 16, SIZE // 4, SIZE // 4)
    scores = found["predictions"][:, 4 : 4 + len(CLASSES)]
    assert scores.min() >= 0 and scores.max() <= 1
    assert graph.preprocessing["letterbox"]["size"] == [SIZE, SIZE]


def test_making_the_graph_leaves_the_objective_as_it_was(objective: nn.Module) -> None:
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    trained = [parameter.requires_grad for parameter in objective.parameters()]
    graphs(objective, SETTINGS)
    after = objective.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert objective.training and [parameter.requires_grad for parameter in objective.parameters()] == trained


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_onnx_file_takes_any_batch_and_agrees_with_torch(graph: Graph, exported: Path, batch: int) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    images = pictures(batch)
    expected = torch_run({NAME: graph}, "cpu")(NAME, images=images)
    for name, found in zip(expected, session.run(list(expected), {"images": images}), strict=True):
        assert np.abs(np.asarray(found) - expected[name]).max() <= 1e-5 * np.ptp(expected[name])


def test_the_head_is_found_by_structure(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(prepare(exported, tmp_path / "prepared.onnx"))
    found = anatomy(model)
    kinds = {node.name: node.op_type for node in model.graph.node}
    # Boxes, classes and coefficients at two strides, and the prototypes.
    assert len(found.last) == 2 * 3 + 1 and {kinds[name] for name in found.last} == {"Conv"}
    assert [kinds[name] for name in found.behind].count("Conv") == 1, "the mean over box distances belongs to the head"
    assert "Softmax" in {kinds[name] for name in found.behind} and "MaxPool" not in {kinds[name] for name in found.behind}
    assert [kinds[name] for name in found.first] == ["Conv"] and found.first[0] not in found.last
