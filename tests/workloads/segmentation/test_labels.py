"""The five formats give the same records, and what each of them may hold arrives as it was meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import shapely
from PIL import Image

from contracts import ordered
from contracts.errors import SlipwayError
from contracts.records import Record, Records, Rejected, write_records
from workloads.segmentation.labels import facts, parse, schema
from workloads.segmentation.labels.drawn import Shape
from workloads.segmentation.labels.geometry import buffered, keyhole, polygons_of, repaired
from workloads.segmentation.labels.listing import Listing
from workloads.segmentation.labels.pictures import look
from workloads.segmentation.labels.rle import decoded, outlines
from workloads.segmentation.labels.splits import split_in_name, split_in_path
from workloads.segmentation.settings import SegmentationParse

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "coco128"
TRIANGLE = [10, 10, 40, 10, 40, 50]
POINTS = [{"x": 10, "y": 10}, {"x": 40, "y": 10}, {"x": 40, "y": 50}]
LABEL = json.dumps({"objects": [{"value": "Cross Arm", "polygon": POINTS}]})


def picture(path: Path, *, width: int = 100, height: int = 80, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    return path


def labelbox(raw: Path, *rows: tuple[str, str], name: str = "labels.csv") -> None:
    quoted = [f'"{image}","' + label.replace('"', '""') + '"' for image, label in rows]
    (raw / name).write_text("\n".join(["External ID,Label", *quoted]) + "\n")


def coco_content(*names: str, segmentation: Any = None, **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
        "annotations": [
            {"id": index, "image_id": index, "category_id": 2, "segmentation": segmentation or [TRIANGLE]}
            for index, _ in enumerate(names)
        ],
        "categories": [{"id": 2, "name": "Cross Arm"}, {"id": 1, "name": "pole"}],
        **changes,
    }


def read(raw: Path, *, processes: int = 1, **settings: Any) -> dict[str, Record]:
    """The records by key, where nothing is refused."""
    found = list(parse(raw, SegmentationParse.model_validate(settings), processes=processes))
    assert [one for one in found if isinstance(one, Rejected)] == []
    return {one.key: one for one in found if isinstance(one, Record)}


def polygons(record: Record) -> list[list[list[float]]]:
    return [[part.tolist() for part in thing["polygons"]] for thing in record.targets["objects"]]


def plain(record: Record) -> tuple[Any, ...]:
    names = [thing["name"] for thing in record.targets["objects"]]
    return record.key, record.group, record.split, record.inputs, names, polygons(record)


# The same labels in every format


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"the photographs are not at {PHOTOGRAPHS}")
def test_the_three_formats_of_coco128_give_identical_records(tmp_path: Path) -> None:
    stored: dict[str, pa.Table] = {}
    names: dict[str, set[str]] = {}
    inputs, targets = schema()
    for kind in ("coco", "labelbox", "yolo"):
        settings = SegmentationParse(format=kind)
        records = (one for one in parse(PHOTOGRAPHS, settings, processes=1) if isinstance(one, Record))
        write_records(tmp_path / kind, records, inputs=inputs, targets=targets, shares=settings.shares)
        written = Records.open(tmp_path / kind, root=PHOTOGRAPHS)
        stored[kind] = written.table.sort_by("key")
        names[kind] = {name for name, count in facts(PHOTOGRAPHS, written, settings)["objects"].items() if count}
    assert stored["coco"].num_rows == 100
    assert sum(len(one["objects"]) for one in stored["coco"]["targets"].to_pylist()) == 746
    assert stored["coco"].equals(stored["labelbox"])
    assert stored["coco"].equals(stored["yolo"])
    assert names["coco"] == names["labelbox"] == names["yolo"]


def test_the_five_formats_of_one_rectangle_give_one_record(tmp_path: Path) -> None:
    left, top, right, bottom = 10.0, 20.0, 60.0, 70.0
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), (left, top, right, bottom), strict=True))
    files = {
        "labelbox": {
            "a.csv": 'External ID,Label\na.png,"{""objects"":[{""value"":""Cross Arm"",""bbox"":{""top"":20,""left"":10,'
            '""width"":50,""height"":50}}]}"\n'
        },
        "coco": {
            "a.json": json.dumps(coco_content("a.png", segmentation=[[value for corner in corners for value in corner]]))
        },
        "yolo": {"labels/a.txt": "0 0.35 0.5625 0.5 0.625\n", "classes.txt": "cross arm\n"},
        "labelme": {
            "a.json": json.dumps({"shapes": [{"label": "cross_arm", "points": corners[::2], "shape_type": "rectangle"}]})
        },
        "voc": {
            "a.xml": "<annotation><object><name>CROSS ARM</name><bndbox>"
            + "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
            + "</bndbox></object></annotation>"
        },
    }
    found = []
    for kind, texts in files.items():
        picture(tmp_path / kind / "a.png")
        for name, text in texts.items():
            (tmp_path / kind / name).parent.mkdir(exist_ok=True)
            (tmp_path / kind / name).write_text(text)
        found.append(plain(read(tmp_path / kind)["a.png"]))
    assert found[0][4:] == (["cross_arm"], [[[10, 20, 60, 20, 60, 70, 10, 70]]])
    assert all(one == found[0] for one in found)


# Which images and which files


@pytest.mark.parametrize(
    "named", ["shot (9).JPG", "shot (9).jpg", "SHOT (9).png", "images/shot (9).jpeg", "flight\\shot (9).jpg"]
)
def test_letter_case_and_ending_of_a_name_may_differ_from_the_disk(tmp_path: Path, named: str) -> None:
    picture(tmp_path / "images" / "Shot (9).jpg")
    labelbox(tmp_path, (named, LABEL))
    assert list(read(tmp_path)) == ["images/Shot (9).jpg"]


def test_the_closest_spelling_of_several_wins(tmp_path: Path) -> None:
    for name in ("a.JPG", "a.jpg", "sub/a.png"):
        picture(tmp_path / name)
    listing = Listing(tmp_path)
    assert [listing.image(name) for name in ("a.JPG", "a.jpg", "sub/a.JPG", "a.png")] == [
        "a.JPG",
        "a.jpg",
        "sub/a.png",
        "sub/a.png",
    ]


def test_names_with_folders_are_found_below_any_folder_and_give_the_split(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        picture(tmp_path / "images" / split / "scene_00001.png")
    labelbox(tmp_path, *((f"{split}/scene_00001.png", LABEL) for split in ("train", "val", "test")))
    records = read(tmp_path)
    assert {key: one.split for key, one in records.items()} == {
        f"images/{split}/scene_00001.png": split for split in ("train", "val", "test")
    }


def test_an_image_with_no_objects_stays_as_a_negative_in_every_format(tmp_path: Path) -> None:
    texts = {
        "labelbox": ("a.csv", 'External ID,Label\na.png,"{""objects"": []}"\n'),
        "coco": ("a.json", json.dumps(coco_content("a.png", annotations=[]))),
        "yolo": ("labels/other.txt", ""),
        "labelme": ("a.json", '{"shapes": []}'),
        "voc": ("a.xml", "<annotation></annotation>"),
    }
    for kind, (name, text) in texts.items():
        picture(tmp_path / kind / "a.png")
        (tmp_path / kind / name).parent.mkdir(exist_ok=True)
        (tmp_path / kind / name).write_text(text)
    picture(tmp_path / "yolo" / "other.png")
    (tmp_path / "yolo" / "classes.txt").write_text("pole\n")
    assert all(read(tmp_path / kind)["a.png"].targets == {"objects": []} for kind in texts)


def test_of_several_formats_the_first_is_read_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "a.png")
    labelbox(tmp_path, ("a.png", LABEL))
    (tmp_path / "a.json").write_text(json.dumps(coco_content("a.png")))
    read(tmp_path)
    assert (
        "labels: coco (also seen and not read: labelbox; set segmentation.parse.format to choose)" in capsys.readouterr().out
    )
    read(tmp_path, format="labelbox")
    assert "labels: labelbox\n" in capsys.readouterr().out


def test_of_coco_files_the_instances_are_read_and_captions_are_not(tmp_path: Path) -> None:
    picture(tmp_path / "train2017" / "a.png")
    picture(tmp_path / "val2017" / "b.png")
    (tmp_path / "annotations").mkdir()
    for split, name in (("train", "a.png"), ("val", "b.png")):
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(coco_content(name)))
        (tmp_path / f"annotations/person_keypoints_{split}2017.json").write_text(json.dumps(coco_content(name)))
    assert {key: one.split for key, one in read(tmp_path).items()} == {"train2017/a.png": "train", "val2017/b.png": "val"}


def test_images_that_no_label_names_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    labelbox(tmp_path, ("b.png", LABEL))
    assert list(read(tmp_path)) == ["b.png"]
    assert "2 images are named by no label and are left out, such as a.png" in capsys.readouterr().out


def test_labels_and_images_say_where_to_look(tmp_path: Path) -> None:
    for folder in ("small", "large"):
        picture(tmp_path / folder / "a.png")
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        labelbox(tmp_path / version, ("a.png", LABEL))
    assert list(read(tmp_path, labels="new", images="large")) == ["large/a.png"]
    with pytest.raises(SlipwayError, match=r"parse.images = 'huge'.*it holds large, new, old, small"):
        read(tmp_path, images="huge")


def test_without_labels_the_error_says_what_was_looked_for_and_what_was_there(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        SlipwayError, match=r"no labels found.*External ID.*dataset.yaml.*1 images and 1 possible.*notes.txt"
    ):
        read(tmp_path)


def test_without_images_the_error_names_the_labels(tmp_path: Path) -> None:
    labelbox(tmp_path, ("a.png", LABEL))
    with pytest.raises(SlipwayError, match=r"no images found.*labels.csv"):
        read(tmp_path)


# Splits and groups


def test_a_yolo_description_gives_names_and_splits(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "images" / f"{split}.png")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / f"{split}.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: {0: pole, 1: Cross Arm}\n")
    records = read(tmp_path)
    assert {key: one.split for key, one in records.items()} == {
        "train/images/train.png": "train",
        "valid/images/valid.png": "val",
    }
    assert records["train/images/train.png"].targets["objects"][0]["name"] == "cross_arm"


def test_a_yolo_description_may_list_images_in_a_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "train.txt").write_text("./images/a.png\n")
    (tmp_path / "val.txt").write_text("images/b.png\n")
    (tmp_path / "dataset.yaml").write_text("path: .\ntrain: train.txt\nval: [val.txt]\nnames: [pole]\n")
    assert {key: one.split for key, one in read(tmp_path).items()} == {"images/a.png": "train", "images/b.png": "val"}


def test_a_yolo_description_that_points_nowhere_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "dataset.yaml").write_text("train: /elsewhere/train\nval: val\nnames: [pole]\n")
    with pytest.raises(SlipwayError, match=r"dataset.yaml: train: '/elsewhere/train' is neither"):
        read(tmp_path)


def test_yolo_labels_without_names_ask_for_them(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    with pytest.raises(SlipwayError, match=r"add a classes.txt"):
        read(tmp_path)
    assert read(tmp_path, classes=["pole"])["images/a.png"].targets["objects"][0]["name"] == "pole"


def test_image_sets_of_voc_give_the_splits(tmp_path: Path) -> None:
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    for name, split in (("a", "train"), ("b", "val"), ("c", "test")):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename></annotation>")
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")
    assert [one.split for one in read(tmp_path).values()] == ["train", "val", "test"]


def test_a_single_official_split_is_no_division(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png")
    labelbox(tmp_path, ("a.png", LABEL))
    assert [one.split for one in read(tmp_path).values()] == [None]


def test_train_and_test_alone_give_a_val_out_of_train(tmp_path: Path) -> None:
    names = [f"train/{index}.png" for index in range(40)] + ["test/a.png", "test/b.png"]
    for name in names:
        picture(tmp_path / name)
    labelbox(tmp_path, *((name, LABEL) for name in names))
    splits = [one.split for one in read(tmp_path, shares=(0.5, 0.3, 0.2)).values()]
    assert set(splits[:40]) == {"train", "val"}
    assert splits[40:] == ["test", "test"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("images/train/a.png", "train"),
        ("val2017/a.png", "val"),
        ("data/Valid/images/a.png", "val"),
        ("testing/a.png", "test"),
        ("test_set/a.png", "test"),
        ("train/old/test/a.png", "test"),
        ("train.png", None),
        ("trains/a.png", None),
        ("latest/a.png", None),
    ],
)
def test_folders_name_splits(path: str, split: str | None) -> None:
    assert split_in_path(path) == split


def test_label_files_name_splits() -> None:
    names = ["a/instances_train2017.json", "val.json", "my-test-labels.json", "latest.json", "train/labels.json"]
    assert [split_in_name(name) for name in names] == ["train", "val", "test", None, "train"]


def test_images_of_one_group_share_it(tmp_path: Path) -> None:
    for circuit in (1, 2):
        picture(tmp_path / f"Circuit{circuit}" / f"{circuit}.png")
    labelbox(tmp_path, ("1.png", LABEL), ("2.png", LABEL))
    groups = [one.group for one in read(tmp_path, group_pattern=r"(Circuit\d+)/").values()]
    assert groups == ["Circuit1", "Circuit2"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is no regular expression"), ("Circuit", "has no group"), ("(flight)", "fits none of the 1 images")],
)
def test_a_group_pattern_that_cannot_work_is_an_error(tmp_path: Path, pattern: str, message: str) -> None:
    picture(tmp_path / "a.png")
    labelbox(tmp_path, ("a.png", LABEL))
    with pytest.raises(SlipwayError, match=message):
        read(tmp_path, group_pattern=pattern)


# Classes


def test_facts_keep_the_order_that_the_files_declare(tmp_path: Path) -> None:
    raw, inputs_targets = tmp_path / "raw", schema()
    picture(raw / "a.png")
    (raw / "a.json").write_text(json.dumps(coco_content("a.png")))
    settings = SegmentationParse(aliases={"pole": "mast"})
    counts = write_records(
        tmp_path / "parsed", read(raw).values(), inputs=inputs_targets[0], targets=inputs_targets[1], shares=(1, 0, 0)
    )
    found = facts(raw, Records.open(tmp_path / "parsed", root=raw), settings)
    assert found == {
        "classes": ["mast", "cross_arm"],
        "comparable": ["classes"],
        "num_records": 1,
        "counts": counts,
        "objects": {"mast": 0, "cross_arm": 1},
    }
    chosen = facts(raw, Records.open(tmp_path / "parsed", root=raw), SegmentationParse(classes=("Cross Arm",)))
    assert chosen["classes"] == ["cross_arm"]


def test_aliases_rename_whatever_the_spelling(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    labelbox(tmp_path, ("a.png", LABEL))
    assert read(tmp_path, aliases={"CROSS arm": "Arm"})["a.png"].targets["objects"][0]["name"] == "arm"


def test_facts_without_any_object_are_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "raw" / "a.png")
    labelbox(tmp_path / "raw", ("a.png", '{"objects": []}'))
    inputs, targets = schema()
    write_records(tmp_path / "parsed", read(tmp_path / "raw").values(), inputs=inputs, targets=targets, shares=(1, 0, 0))
    with pytest.raises(SlipwayError, match="none of the 1 images has a labelled object"):
        facts(tmp_path / "raw", Records.open(tmp_path / "parsed", root=tmp_path / "raw"), SegmentationParse())


# Shapes


def test_a_line_becomes_a_band_of_the_set_width(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    label = {"objects": [{"value": "conductor", "line": [{"x": 10, "y": 40}, {"x": 60, "y": 40}]}]}
    labelbox(tmp_path, ("a.png", json.dumps(label)))
    ring = np.array(polygons(read(tmp_path, line_width=6)["a.png"])[0][0]).reshape(-1, 2)
    assert shapely.Polygon(ring).equals(shapely.box(10, 37, 60, 43))


def test_a_line_through_the_edge_is_cut_there() -> None:
    (ring,) = buffered(np.array([[50.0, 40.0], [150.0, 40.0]]), 4, 100, 80)
    assert shapely.Polygon(ring).equals(shapely.box(50, 38, 100, 42))


def test_a_polygon_over_the_edge_is_cut_there() -> None:
    (ring,) = repaired(np.array([[-20.0, 10], [20, 10], [20, 30], [-20, 30]]), 100, 80)
    assert shapely.Polygon(ring).equals(shapely.box(0, 10, 20, 30))


def test_a_polygon_that_crosses_itself_keeps_both_of_its_halves() -> None:
    rings = repaired(np.array([[10.0, 10], [50, 50], [50, 10], [10, 50]]), 100, 80)
    assert sorted(shapely.Polygon(ring).area for ring in rings) == [400, 400]


def test_shapes_of_many_images_judged_together_are_as_each_judged_alone() -> None:
    square = [10, 10, 60.0, 10, 60, 60, 10, 60]
    shapes = [
        Shape(1, "pole", [square, [0.1, 0.1, 0.6, 0.1, float("nan"), 0.6]], None),
        Shape(2, "pole", [[0.1, 0.1, 0.6, 0.1, 0.6, 0.6], [3.0, 0.1, 0.6, 0.1, 0.6, 0.6]], None, unit="shares"),
        Shape(3, "wire", [[5, 5, 40.0, 50.0], square, [5, 5, 5, 5], [5, 5, 10**400, 5]], None, "line"),
        Shape(4, "wire", [[0.1, 0.1, 0.5, 0.9]], None, "line", "shares"),
        Shape(5, "pole", [[10, 10, 10, 10, 10, 10], [5, 5, True, 9, 9, 9], square], None),
    ]
    sizes = [(100, 80), (4000, 3000), (50, 55), (64, 64), (30, 90)]
    polygons, reasons = polygons_of(shapes, sizes, 4)
    for shape, size, rings, faults in zip(shapes, sizes, polygons, reasons, strict=True):
        alone = polygons_of([shape], [size], 4)
        assert [ring.tobytes() for ring in rings] == [ring.tobytes() for ring in alone[0][0]]
        assert faults == alone[1][0]
    assert [len(rings) for rings in polygons] == [1, 1, 2, 1, 1]
    assert [len(faults) for faults in reasons] == [1, 1, 2, 0, 2]


def test_a_quick_band_is_the_same_as_one_that_is_looked_at_closely() -> None:
    points = [20.0, 20, 50, 24, 81.5, 60.25]
    ((quick,),), _ = polygons_of([Shape(1, "wire", [points], None, "line")], [(100, 80)], 4)
    (slow,) = buffered(np.array(points).reshape(-1, 2), 4, 100, 80)
    assert quick.tolist() == slow.astype(np.float32).ravel().tolist()


def test_a_ring_with_a_bridge_keeps_its_points() -> None:
    hole = shapely.Polygon([(0, 0), (40, 0), (40, 40), (0, 40)], [[(10, 10), (20, 10), (20, 20), (10, 20)]])
    ring = keyhole(hole)
    assert shapely.Polygon(ring).area == hole.area
    (kept,) = repaired(ring, 100, 80)
    assert kept.tolist() == ring.tolist()


def test_every_polygon_of_a_coco_object_is_kept(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    second = [60, 60, 70, 60, 70, 70]
    (tmp_path / "a.json").write_text(json.dumps(coco_content("a.png", segmentation=[TRIANGLE, second])))
    assert polygons(read(tmp_path)["a.png"]) == [[TRIANGLE, second]]


def test_a_coco_box_without_a_segmentation_is_a_rectangle(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    annotation = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 20, 30, 40]}
    (tmp_path / "a.json").write_text(json.dumps(coco_content("a.png", annotations=[annotation])))
    assert polygons(read(tmp_path)["a.png"]) == [[[10, 20, 40, 20, 40, 60, 10, 60]]]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_run_length_mask_is_filled_again_to_the_same_mask(compressed: bool) -> None:
    from faster_coco_eval.core import mask as reference

    mask = np.zeros((80, 100), np.uint8)
    cv2.circle(mask, (40, 40), 25, 1, -1)
    cv2.circle(mask, (40, 40), 8, 0, -1)
    cv2.rectangle(mask, (80, 5), (95, 60), 1, -1)
    encoded = reference.encode(np.asfortranarray(mask))
    counts = encoded["counts"].decode()
    if not compressed:
        changes = np.flatnonzero(np.diff(mask.T.ravel())) + 1
        counts = np.diff(np.array([0, *changes.tolist(), mask.size])).tolist()
    segmentation = {"counts": counts, "size": [80, 100]}
    assert np.array_equal(decoded(segmentation), mask)
    again = np.zeros_like(mask)
    for ring in outlines(segmentation):
        cv2.fillPoly(again, [np.array(ring, np.int32).reshape(-1, 2)], (1,))
    assert (again != mask).sum() <= 60  # fillPoly also draws the edge of the hole itself


def test_labelme_shapes_of_every_kind(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    shapes = [
        {"label": "a", "points": [[10, 10], [40, 10], [40, 50]]},
        {"label": "a", "points": [[10, 10], [40, 50]], "shape_type": "rectangle"},
        {"label": "a", "points": [[50, 40], [60, 40]], "shape_type": "circle"},
        {"label": "a", "points": [[10, 70], [90, 70]], "shape_type": "line"},
        {"label": "a", "points": [[10, 60], [50, 60], [50, 75]], "shape_type": "linestrip"},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"shapes": shapes, "imageHeight": 80, "imageWidth": 100}))
    areas = [shapely.Polygon(np.array(parts[0]).reshape(-1, 2)).area for parts in polygons(read(tmp_path)["a.png"])]
    assert areas == pytest.approx([600, 1200, np.pi * 100, 320, 220], rel=0.02)


# Images


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_the_one_that_opencv_shows(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / f"a.{ending}", exif=exif)
    found = look(tmp_path / f"a.{ending}")
    height, width = cv2.imread(str(tmp_path / f"a.{ending}")).shape[:2]  # pyright: ignore[reportOptionalMemberAccess]
    assert (found.width, found.height) == (width, height)


def test_a_picture_saved_again_smaller_is_alike_and_another_is_not(tmp_path: Path) -> None:
    first = look(picture(tmp_path / "a.png", width=640, height=480)).likeness
    Image.open(tmp_path / "a.png").resize((320, 240)).save(tmp_path / "b.jpg", quality=60)
    again, other = look(tmp_path / "b.jpg").likeness, look(picture(tmp_path / "c.png", seed=1)).likeness
    assert (int.from_bytes(first) ^ int.from_bytes(again)).bit_count() <= 7
    assert (int.from_bytes(first) ^ int.from_bytes(other)).bit_count() > 20


# Processes


def test_the_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = picture(tmp_path / "0.png")
    for index in range(1, 150):
        shutil.copy(first, tmp_path / f"{index}.png")
    rows = [(f"{index}.png", LABEL if index % 7 else "Skip") for index in range(150)]
    labelbox(tmp_path, *rows)
    monkeypatch.setattr(ordered, "ALONE_SECONDS", 0)
    one, two = (list(parse(tmp_path, SegmentationParse(), processes=count)) for count in (1, 2))
    assert [plain(a) if isinstance(a, Record) else a for a in one] == [plain(b) if isinstance(b, Record) else b for b in two]
    assert len(one) == 150


def test_an_open_quotation_mark_is_named_with_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workloads.segmentation.labels import labelbox as reader

    monkeypatch.setattr(reader, "MAX_CELL", 1000)
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text('External ID,Label\na.png,""\na.png,"{' + "x" * 2000)
    with pytest.raises(SlipwayError, match=r"labels.csv: row 3 cannot be read.*quotation mark"):
        list(parse(tmp_path, SegmentationParse(), processes=1))


def test_labels_written_by_python_are_read_as_the_same_in_json(tmp_path: Path) -> None:
    label = {"objects": [{**json.loads(LABEL)["objects"][0], "title": None, "it's": True}], "skipped": False}
    for name, text in (("python", f" {label}\n"), ("json", json.dumps(label))):
        picture(tmp_path / name / "a.png")
        labelbox(tmp_path / name, ("a.png", text))
    assert plain(read(tmp_path / "python")["a.png"]) == plain(read(tmp_path / "json")["a.png"])


def test_labels_of_images_that_are_not_there_are_no_loss_where_half_of_the_images_have_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        picture(tmp_path / name)
    rows = [("a.png", LABEL), *((f"Circuit9/{index}.png", LABEL) for index in range(90))]
    labelbox(tmp_path, *rows, ("b.png", LABEL))
    found = list(parse(tmp_path, SegmentationParse(), processes=1))
    refused = [one for one in found if isinstance(one, Rejected)]
    assert len(found) == 92 and len(refused) == 90 and all(one.absent and one.whole for one in refused)
    assert "2 images are named by no label" in capsys.readouterr().out

    labelbox(tmp_path, *rows)
    with pytest.raises(SlipwayError, match=r"90 labels are of images that are not there, and 3 of the 4 images.*b\.png"):
        list(parse(tmp_path, SegmentationParse(), processes=1))
    assert len(list(parse(tmp_path, SegmentationParse(max_rejected=0.99), processes=1))) == 91


def test_a_csv_saved_by_a_spreadsheet_as_utf16_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "é.png")
    text = 'External ID,Label\né.png,"' + LABEL.replace('"', '""') + '"\n'
    (tmp_path / "labels.csv").write_text(text, encoding="utf-16")
    assert list(read(tmp_path)) == ["é.png"]


def test_a_cut_off_coco_file_stops_the_run(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(coco_content("a.png"))[:-10])
    with pytest.raises(SlipwayError, match=r"a.json is not JSON.*Was it cut off"):
        list(parse(tmp_path, SegmentationParse(), processes=1))
