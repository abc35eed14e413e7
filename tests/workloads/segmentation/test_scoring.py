"""Scores are COCO's: known by hand in small cases, and equal to Ultralytics' where both count the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contracts.errors import SlipwayError
from contracts.records import Record, Records, write_records
from contracts.workload import Measure, Scores
from serving.runtime import open_run
from tests.loading import loaded
from tests.serving.stand_in import CLASSES, picture, write_artifact, write_picture
from workloads.segmentation.masks import Mask
from workloads.segmentation.scoring import confusion, measure, pairs, score, truths_of
from workloads.segmentation.settings import SegmentationSettings
from workloads.segmentation.yolo import prepare_ultralytics

ROOT = Path(__file__).parents[3]
SIDE = 400
Box = tuple[int, int, int, int]


def columns(objects: Sequence[tuple[int, Box]]) -> dict[str, list[Any]]:
    """Rectangles x, y, width, height as classes, boxes and masks."""
    masks = [Mask(x, y, np.ones((height, width), bool)).counts(SIDE, SIDE) for _, (x, y, width, height) in objects]
    return {
        "classes": [label for label, _ in objects],
        "boxes": [list(map(float, box)) for _, box in objects],
        "masks": masks,
    }


def one(truths: Sequence[tuple[int, Box]], predictions: Sequence[tuple[int, float, Box]], key: str = "a") -> Measure:
    found = {**columns([(label, box) for label, _, box in predictions]), "scores": [value for _, value, _ in predictions]}
    return {"key": key, "size": [SIDE, SIDE], "truths": columns(truths), "predictions": found, "quality": 0.0}


A, B, C = (0, 0, 50, 50), (100, 0, 50, 50), (200, 200, 40, 60)


def check(scores: Scores, **expected: float) -> None:
    """Masks and boxes alike: in these cases they are the same rectangles."""
    for name, value in expected.items():
        for kind in ("mask", "box"):
            assert scores.metrics[f"{kind}_{name}"] == pytest.approx(value, abs=1e-9), f"{kind}_{name}"


def test_perfect_predictions_score_one() -> None:
    scores = score([one([(0, A), (1, B)], [(0, 0.9, A), (1, 0.8, B)])], ["cat", "dog"])
    check(scores, map50=1, map50_95=1, precision=1, recall=1)
    assert (scores.metrics["num_images"], scores.metrics["num_objects"]) == (1, 2)


def test_a_false_object_ahead_of_two_true_ones_gives_two_thirds() -> None:
    scores = score([one([(0, A), (0, B)], [(0, 0.9, C), (0, 0.8, A), (0, 0.7, B)])], ["cat"])
    check(scores, map50=2 / 3, map50_95=2 / 3, precision=2 / 3, recall=1)


def test_half_of_the_objects_found_gives_fifty_one_of_coco_s_hundred_and_one_recalls() -> None:
    scores = score([one([(0, A), (0, B)], [(0, 0.9, A)])], ["cat"])
    check(scores, map50=51 / 101, map50_95=51 / 101, precision=1, recall=0.5)


def test_an_overlap_of_62_percent_counts_at_three_of_ten_thresholds() -> None:
    scores = score([one([(0, (0, 0, 100, 100))], [(0, 0.9, (0, 0, 100, 62))])], ["cat"])
    check(scores, map50=1, map50_95=0.3)


def test_a_second_box_on_the_same_object_is_false() -> None:
    scores = score([one([(0, A), (0, B)], [(0, 0.9, A), (0, 0.8, A), (0, 0.7, B)])], ["cat"])
    check(scores, map50=(51 + 50 * 2 / 3) / 101)


def test_the_wrong_class_is_both_missed_and_false() -> None:
    scores = score([one([(0, A), (1, B)], [(1, 0.9, A), (1, 0.8, B)])], ["cat", "dog"])
    check(scores, map50=(0 + 1 / 2) / 2)


def test_a_picture_without_objects_counts() -> None:
    with_object, without = one([(0, A)], [(0, 0.5, A)]), one([], [(0, 0.9, A)], key="b")
    check(score([with_object], ["cat"]), map50=1)
    both = score([with_object, without], ["cat"])
    check(both, map50=1 / 2, precision=1 / 2)
    assert both.metrics["num_images"] == 2


def test_a_class_without_objects_is_left_out_of_the_mean_and_shown_as_such() -> None:
    scores = score([one([(0, A)], [(0, 0.9, A), (1, 0.8, B)])], ["cat", "dog"])
    check(scores, map50=1, precision=1)
    cat, dog = scores.rows
    assert (cat["class"], cat["objects"], cat["mask_ap50"]) == ("cat", 1, 1)
    assert dog == {"class": "dog", "objects": 0, **{key: None for key in dog if key not in ("class", "objects")}}


@pytest.mark.parametrize(
    "measures",
    [
        [one([(0, A)], [])],
        [one([], [(0, 0.9, A)])],
        [one([], [])],
        [],
        [one([(0, A)], [(0, 0.9, C)])],
    ],
)
def test_where_nothing_was_found_everything_is_zero_and_nothing_nan(measures: list[Measure]) -> None:
    scores = score(measures, ["cat", "dog"])
    check(scores, map50=0, map50_95=0, precision=0, recall=0)
    numbers = [*scores.metrics.values(), *(y for chart in scores.charts for _, line in chart.lines.values() for y in line)]
    assert all(math.isfinite(value) for value in numbers)


def test_more_than_a_hundred_objects_in_a_picture_all_count() -> None:
    grid = [(x, y, 15, 15) for x in range(0, 380, 20) for y in range(0, 200, 20)]
    scores = score([one([(0, box) for box in grid], [(0, 0.9, box) for box in grid])], ["cat"])
    assert len(grid) > 150
    check(scores, map50=1, recall=1)


def test_scoring_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score([one([(0, A)], [(0, 0.9, A)])], ["cat"])
    assert capfd.readouterr() == ("", "")


def test_the_confidence_with_the_best_f1_is_told() -> None:
    measures = [one([(0, A), (0, B)], [(0, 0.9, A), (0, 0.8, B), (0, 0.3, C), (0, 0.2, (300, 300, 9, 9))])]
    scores = score(measures, ["cat"])
    assert 0.3 < scores.metrics["mask_confidence"] < 0.8
    assert scores.metrics["mask_precision"] == pytest.approx(1, abs=0.05), "between two scores it is interpolated"
    assert scores.metrics["mask_recall"] == 1


def test_confusions_are_counted_with_the_background() -> None:
    measures = [one([(0, A), (1, B), (1, C)], [(0, 0.9, A), (0, 0.8, B), (1, 0.7, (300, 300, 20, 20)), (1, 0.2, C)])]
    #          said cat, dog, nothing
    assert confusion(measures, 2).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def random_measures(seed: int, *, num: int = 20, classes: int = 3) -> list[Measure]:
    """Pictures with objects, of which some are missed, moved, mistaken or invented."""
    rng = np.random.default_rng(seed)
    measures = []
    for index in range(num):
        truths, found = [], []
        for place in rng.permutation(16)[: rng.integers(0, 8)].tolist():
            box = (place % 4 * 100 + 10, place // 4 * 100 + 10, int(rng.integers(30, 70)), int(rng.integers(30, 70)))
            label = int(rng.integers(classes))
            truths.append((label, box))
            if rng.random() < 0.8:
                moved = tuple(int(value) for value in np.array(box) + rng.integers(-9, 10, 4))
                said = label if rng.random() < 0.85 else int(rng.integers(classes))
                found.append((said, float(rng.uniform(0.2, 1)), moved))
        for _ in range(rng.integers(0, 4)):
            x, y = rng.integers(0, 300, 2).tolist()
            found.append((int(rng.integers(classes)), float(rng.uniform(0, 0.8)), (x, y, 50, 50)))
        measures.append(one(truths, sorted(found, key=lambda item: -item[1]), key=str(index)))
    return measures


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_ultralytics(seed: int) -> None:
    prepare_ultralytics()
    import torch
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.utils.metrics import ap_per_class, box_iou

    measures, (right, scores, said, true) = random_measures(seed), ([], [], [], [])
    validator = DetectionValidator.__new__(DetectionValidator)
    validator.iouv = torch.linspace(0.5, 0.95, 10)
    for each in measures:
        boxes = [torch.tensor(each[side]["boxes"]).reshape(-1, 4) for side in ("truths", "predictions")]
        theirs, mine = (torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], 1) for box in boxes)
        labels = [torch.tensor(each[side]["classes"], dtype=torch.int64) for side in ("truths", "predictions")]
        if len(mine):
            hits = validator.match_predictions(labels[1], labels[0], box_iou(theirs, mine)) if len(theirs) else None
            right.append(np.zeros((len(mine), 10), bool) if hits is None else np.asarray(hits))
            scores.extend(each["predictions"]["scores"])
            said.extend(labels[1].tolist())
        true.extend(labels[0].tolist())
    theirs = ap_per_class(np.concatenate(right), np.array(scores), np.array(said), np.array(true))
    precision, recall, average = theirs[2], theirs[3], theirs[5]
    found = score(measures, ["a", "b", "c"]).metrics
    # COCO's precision steps, Ultralytics' slopes between its points: that is up to a point of AP on few objects.
    assert found["box_map50"] == pytest.approx(average[:, 0].mean(), abs=0.015)
    assert found["box_map50_95"] == pytest.approx(average.mean(), abs=0.015)
    assert found["box_precision"] == pytest.approx(precision.mean(), abs=1e-6)
    assert found["box_recall"] == pytest.approx(recall.mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_confusions_equal_ultralytics(seed: int) -> None:
    prepare_ultralytics()
    import torch
    from ultralytics.utils.metrics import ConfusionMatrix

    measures, theirs = random_measures(seed), ConfusionMatrix({0: "a", 1: "b", 2: "c"})
    for each in measures:
        sides = {}
        for side in ("truths", "predictions"):
            boxes = torch.tensor(each[side]["boxes"]).reshape(-1, 4)
            corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
            sides[side] = {"bboxes": corners, "cls": torch.tensor(each[side]["classes"])}
        sides["predictions"]["conf"] = torch.tensor(each["predictions"]["scores"])
        theirs.process_batch(sides["predictions"], sides["truths"])
    assert (confusion(measures, 3) == theirs.matrix.T).all()


def test_every_metric_and_every_column_is_explained() -> None:
    scores = score([one([(0, A)], [(0, 0.9, A)])], ["cat"])
    assert {*scores.metrics, *scores.rows[0]} - {"class"} == set(scores.meanings)


def test_pairs_are_one_to_one_and_the_first_chooses_first() -> None:
    ious = np.array([[0.6, 0.9], [0.7, 0.95], [0.1, 0.2]])
    rows, chosen = pairs(ious, 0.5)
    assert (rows.tolist(), chosen.tolist()) == ([0, 1], [1, 0])


# From here on with a real graph and real records.


@pytest.fixture
def run(tmp_path: Path):
    return open_run(write_artifact(tmp_path / "model", size=64), threads=1)


SETTINGS = SegmentationSettings.model_validate({"train": {"image_size": 64}})


def rectangle(name: str, box: Box) -> dict[str, Any]:
    """A labelled rectangle x1, y1, x2, y2 whose last pixels are x2 - 1, y2 - 1."""
    x1, y1, x2, y2 = box
    return {"name": name, "polygons": [[x1, y1, x2 - 1, y1, x2 - 1, y2 - 1, x1, y2 - 1]]}


def write(folder: Path, examples: Sequence[tuple[np.ndarray, list[dict[str, Any]]]]) -> Records:
    """Pictures with their objects as records."""
    objects = pa.list_(pa.struct([("name", pa.string()), ("polygons", pa.list_(pa.list_(pa.float32())))]))
    inputs = pa.struct([("image", pa.string()), ("width", pa.int32()), ("height", pa.int32())])
    records = []
    for index, (image, labels) in enumerate(examples):
        name = write_picture(folder / f"{index:02d}.png", image).name
        size = {"image": name, "width": image.shape[1], "height": image.shape[0]}
        records.append(Record(name, "", size, {"objects": labels}, "test"))
    write_records(folder / "parse", records, inputs=inputs, targets=pa.struct([("objects", objects)]), shares=(0, 0, 1))
    return Records.open(folder / "parse", root=folder)


def scene(**rectangles: Box) -> tuple[np.ndarray, list[dict[str, Any]]]:
    return picture(64, 64, **rectangles), [rectangle(name, box) for name, box in rectangles.items()]


def test_every_record_is_measured_in_order_whatever_the_batch(run: Any, tmp_path: Path) -> None:
    examples = [scene(green=(8, 8, 32, 40)), scene(), *(scene(red=(4 * i, 0, 4 * i + 8, 16)) for i in range(18))]
    measures = list(measure(run, write(tmp_path, examples), SETTINGS, CLASSES))
    assert [each["key"] for each in measures] == [f"{index:02d}.png" for index in range(20)]
    assert [len(each["predictions"]["scores"]) for each in measures[:3]] == [1, 0, 1]
    assert measures[0]["predictions"]["boxes"] == [[8, 8, 24, 32]]
    assert [set(each) for each in measures] == [{"key", "size", "truths", "predictions", "quality"}] * 20


def test_a_picture_of_another_shape_is_measured_on_its_own_grid(run: Any, tmp_path: Path) -> None:
    large = picture(200, 120, blue=(50, 25, 150, 100)), [rectangle("blue", (50, 25, 150, 100))]
    [found] = measure(run, write(tmp_path, [large]), SETTINGS, CLASSES)
    assert found["size"] == [120, 200]
    assert found["predictions"]["boxes"][0] == pytest.approx([50, 25, 100, 75], abs=14)
    assert found["quality"] > 0.8


def test_quality_is_one_for_a_perfect_picture_and_falls_with_each_fault(run: Any, tmp_path: Path) -> None:
    image, labels = scene(green=(8, 8, 32, 40))
    missed = image, [*labels, rectangle("red", (40, 40, 56, 56))]
    invented = picture(64, 64, green=(8, 8, 32, 40), red=(40, 40, 56, 56)), labels
    mistaken = image, [rectangle("blue", (8, 8, 32, 40))]
    records = write(tmp_path, [(image, labels), scene(), missed, invented, mistaken])
    qualities = [each["quality"] for each in measure(run, records, SETTINGS, CLASSES)]
    assert qualities == pytest.approx([1, 1, 2 / 3, 2 / 3, 0])


def test_a_perfect_model_scores_one_from_picture_to_metric(run: Any, tmp_path: Path) -> None:
    examples = [scene(green=(8, 8, 32, 40), red=(40, 4, 60, 20)), scene(blue=(0, 0, 20, 20)), scene()]
    scores = score(measure(run, write(tmp_path, examples), SETTINGS, CLASSES), CLASSES)
    check(scores, map50=1)
    assert scores.metrics["mask_map50_95"] == 1
    assert scores.metrics["box_map50_95"] > 0.8, "a label's box ends at its last corner, a pixel before the mask does"
    assert [chart.kind for chart in scores.charts] == ["matrix", "matrix", "lines", "lines"]
    assert scores.charts[0].labels == ["blue", "green", "red", "background"]
    assert list(scores.charts[2].lines) == ["mean", "blue", "green", "red"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "00.png").unlink(), "00.png cannot be read: No such file"),
        (lambda folder: (folder / "00.png").write_bytes(b"no image"), r"00.png is not an image .* \(8 bytes\)"),
        (
            lambda folder: write_picture(folder / "00.png", np.zeros((9, 7, 3), np.uint8)),
            "7 x 9 pixels, .* parsed for 64 x 64",
        ),
    ],
)
def test_a_picture_that_changed_since_it_was_parsed_stops_the_evaluation(run: Any, tmp_path: Path, harm, said: str) -> None:
    records = write(tmp_path, [scene(green=(8, 8, 32, 40))])
    harm(tmp_path)
    with pytest.raises(SlipwayError, match=said):
        list(measure(run, records, SETTINGS, CLASSES))


def test_a_class_that_the_model_does_not_know_is_named(run: Any, tmp_path: Path) -> None:
    records = write(tmp_path, [(picture(64, 64), [rectangle("zebra", (0, 0, 9, 9))])])
    with pytest.raises(SlipwayError, match=r"00\.png: the class 'zebra' is not one of the model's: blue, green, red"):
        list(measure(run, records, SETTINGS, CLASSES))


PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "coco128"


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs the photographs in ../shared/data/coco128")
def test_the_labels_of_real_photographs_score_one_against_themselves() -> None:
    labels = json.loads((PHOTOGRAPHS / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in labels["categories"]}
    ids = {name: index for index, name in enumerate(names.values())}
    measures = []
    for image in labels["images"]:
        mine = [
            label
            for label in labels["annotations"]
            if label["image_id"] == image["id"] and isinstance(label["segmentation"], list)
        ]
        objects = [{"name": names[label["category_id"]], "polygons": label["segmentation"]} for label in mine]
        record = Record(image["file_name"], "", {"width": image["width"], "height": image["height"]}, {"objects": objects})
        truths = truths_of(record, ids)
        found = {**truths, "scores": [0.9] * len(objects)}
        measures.append(
            {"key": record.key, "size": [image["height"], image["width"]], "truths": truths, "predictions": found}
        )
    scores = score(measures, list(ids))
    check(scores, map50=1, map50_95=1)
    assert scores.metrics["num_objects"] > 700


def test_neither_measuring_nor_predicting_imports_torch() -> None:
    code = (
        "from contracts.workload import load; load('segmentation')\n"
        "import workloads.segmentation.scoring, workloads.segmentation.predicting\n"
        "workloads.segmentation.scoring.score([], ['a'])"
    )
    assert not loaded(code) & {"torch", "ultralytics", "torchvision", "matplotlib"}
