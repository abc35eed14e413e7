"""What is decoded without torch is what Ultralytics' own operations give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workloads.segmentation import decoding
from workloads.segmentation.decoding import Instances, candidates, decode, suppress
from workloads.segmentation.letterbox import Letterbox
from workloads.segmentation.yolo import prepare_ultralytics

SIZES = [
    (128, 128, 128),
    (500, 375, 640),
    (333, 640, 640),
    (1000, 17, 640),
    (97, 61, 128),
    (1200, 900, 640),
    (200, 131, 256),
]
HOW = {"confidence": 0.05, "iou": 0.7, "max_detections": 100}


def outputs(
    size: int, *, classes: int = 10, masks: int = 16, anchors: int = 600, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Random predictions and prototypes with crowds of overlapping boxes."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0, size, (2, anchors)), rng.uniform(2, size / 3, (2, anchors)), rng.random((classes, anchors)) ** 12
    coefficients = rng.normal(size=(masks, anchors))
    protos = rng.normal(size=(masks, size // 4, size // 4)).astype(np.float32)
    return np.concatenate([*rows, coefficients]).astype(np.float32), protos


def of_ultralytics(
    predictions: Any, protos: Any, geometry: Letterbox, *, many_labels: bool, classes: int, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores, classes and full masks as Ultralytics' predictor computes them."""
    prepare_ultralytics()
    import torch
    from ultralytics.utils import nms, ops

    prediction, proto = torch.from_numpy(predictions)[None].clone(), torch.from_numpy(protos)
    found: Any = nms.non_max_suppression(
        prediction, confidence, HOW["iou"], multi_label=many_labels, max_det=HOW["max_detections"], nc=classes
    )[0]
    shape = geometry.height, geometry.width
    boxes = ops.scale_boxes((geometry.size, geometry.size), found[:, :4].clone(), shape)
    masks = ops.process_mask_native(proto, found[:, 6:], boxes, shape)
    return np.asarray(boxes), found[:, 4].numpy(), found[:, 5].numpy(), masks.numpy().astype(bool)


def check_equal(mine: Instances, theirs: tuple[np.ndarray, ...], geometry: Letterbox) -> None:
    boxes, scores, classes, masks = theirs
    assert mine.boxes == pytest.approx(boxes, abs=1e-3)
    assert mine.scores.tolist() == scores.tolist()
    assert mine.classes.tolist() == classes.tolist()
    full = np.stack([mask.full(geometry.height, geometry.width) for mask in mine.masks])
    # A pixel may fall on either side where its logit is zero to the last bit.
    assert (full != masks).sum() <= 1e-4 * masks.sum() + 1


@pytest.mark.parametrize(("width", "height", "size"), SIZES)
@pytest.mark.parametrize("many_labels", [False, True])
def test_objects_equal_ultralytics_at_the_picture_s_own_resolution(
    width: int, height: int, size: int, many_labels: bool
) -> None:
    predictions, protos = outputs(size)
    geometry = Letterbox.fit(width, height, size)
    mine = decode(predictions, protos, geometry, **HOW, many_labels=many_labels)
    assert len(mine) > 30
    theirs = of_ultralytics(predictions, protos, geometry, many_labels=many_labels, classes=10, confidence=HOW["confidence"])
    check_equal(mine, theirs, geometry)


def test_a_real_network_s_objects_equal_ultralytics() -> None:
    prepare_ultralytics()
    import torch
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    model = SegmentationModel("yolov8n-seg.yaml", nc=80, verbose=False)
    with torch.no_grad():  # untrained statistics would let every signal die on its way: take them from a batch
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(torch.rand(4, 3, 160, 160))
    layers: Any = model.eval().model
    head = layers[-1]
    head.export, head.format = True, "onnx"
    with torch.inference_mode():
        predictions, protos = (value[0].numpy() for value in model(torch.rand(1, 3, 160, 160)))
    geometry = Letterbox.fit(301, 222, 160)
    confidence = float(np.quantile(predictions[4:84], 0.99))  # its scores are all near 0
    mine = decode(predictions, protos, geometry, confidence=confidence, iou=0.7, max_detections=100, many_labels=True)
    assert len(mine) > 10
    theirs = of_ultralytics(predictions, protos, geometry, many_labels=True, classes=80, confidence=confidence)
    check_equal(mine, theirs, geometry)


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 5, 10, 15]], np.float32)
    assert suppress(boxes, np.array([0, 1, 0, 0]), iou=0.5, limit=10).tolist() == [0, 1, 3]
    assert suppress(boxes, np.array([0, 1, 0, 0]), iou=0.5, limit=1).tolist() == [0]


def test_boxes_that_overlap_exactly_as_much_as_allowed_stay() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    assert suppress(boxes, np.array([0, 0]), iou=0.5, limit=10).tolist() == [0, 1]


def test_a_box_gives_its_best_label_or_each_that_scores_enough() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.2]], np.float32)
    assert [one.tolist() for one in candidates(scores, 0.15, many_labels=False)[:2]] == [[0, 1], [0, 1]]
    assert [one.tolist() for one in candidates(scores, 0.15, many_labels=True)[:2]] == [[0, 0, 1], [0, 1, 1]]


def test_only_the_best_candidates_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_CANDIDATES", 3)
    assert candidates(np.linspace(0.1, 1, 10)[None], 0.05, many_labels=True)[0].tolist() == [9, 8, 7]


def test_nothing_above_the_confidence_is_nothing_found() -> None:
    predictions, protos = outputs(64)
    found = decode(predictions, protos, Letterbox.fit(64, 64, 64), confidence=1.0, iou=0.7, max_detections=10)
    assert (len(found), found.boxes.shape, found.masks) == (0, (0, 4), [])


def test_a_graph_that_says_nan_finds_nothing_and_breaks_nothing() -> None:
    predictions, protos = outputs(64)
    geometry = Letterbox.fit(50, 64, 64)
    assert len(decode(np.full_like(predictions, np.nan), protos, geometry, **HOW)) == 0
    predictions[:4] = np.inf
    with np.errstate(invalid="ignore"):
        assert len(decode(predictions, protos, geometry, **HOW)) == 0


def test_a_box_outside_the_picture_has_an_empty_mask() -> None:
    predictions, protos = outputs(64, classes=1, masks=2, anchors=1)
    predictions[:5, 0] = 32, 2, 20, 3, 0.9  # in the padding above a flat picture
    [mask] = decode(predictions, protos, Letterbox.fit(64, 32, 64), **HOW).masks
    assert mask.area == 0
    assert not mask.full(32, 64).any()


def test_masks_keep_to_their_boxes_and_so_to_little_memory() -> None:
    predictions, protos = outputs(640)
    found = decode(predictions, protos, Letterbox.fit(4000, 3000, 640), **HOW)
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes, strict=True):
        height, width = mask.window.shape
        assert mask.x >= x1
        assert mask.y >= y1
        assert mask.x + width < x2 + 1
        assert mask.y + height < y2 + 1
