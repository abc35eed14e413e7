"""Label files as people really bring them: what is refused of each, where it says so, and what is kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from contracts.records import Record
from tasks.parse import Tally
from workloads.segmentation.labels import parse
from workloads.segmentation.settings import SegmentationParse

WIDTH, HEIGHT = 100, 80
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
NAN, INFINITY = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """Files beside image.png, the rows expected in quarantine.csv (file, row, start of value, start of reason), and the
    classes of the objects kept of each image (an image that is not named is lost)."""

    name: str
    files: dict[str, Any]
    refused: list[tuple[str, str, str, str]]
    kept: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def points(numbers: Iterable[Any]) -> list[dict[str, Any]]:
    numbers = list(numbers)
    return [{"x": x, "y": y} for x, y in zip(numbers[::2], numbers[1::2], strict=True)]


def polygon(numbers: Iterable[Any], value: Any = "pole") -> dict[str, Any]:
    return {"value": value, "polygon": points(numbers)}


def table(*rows: tuple[str, Any]) -> bytes:
    """A Labelbox CSV; a label that is no text is written as JSON."""
    lines = ['"External ID","Label"']
    for name, label in rows:
        text = label if isinstance(label, str) else json.dumps(label)
        lines.append(f'"{name}","' + text.replace('"', '""') + '"')
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


LEFT_OUT = "image left out: none of its labels is usable"


def labelbox(name: str, thing: Any, value: str, reason: str) -> Case:
    """One object that is refused beside a good one."""
    rows = table(("image.png", {"objects": [polygon(SQUARE), thing]}))
    return Case(f"labelbox: {name}", {"labels.csv": rows}, [("labels.csv", "2", value, reason)], {"image.png": ["pole"]})


def cell(name: str, text: Any, value: str, reason: str) -> Case:
    """A row whose label cannot be read at all."""
    return Case(f"labelbox: {name}", {"labels.csv": table(("image.png", text))}, [("labels.csv", "2", value, reason)])


def coco(name: str, annotation: dict[str, Any], value: str, reason: str) -> Case:
    """One annotation that is refused beside a good one."""
    content = coco_file([annotation_of(1), {**annotation_of(7), **annotation}])
    return Case(
        f"coco: {name}",
        {"instances.json": content},
        [("instances.json", "annotation 7", value, reason)],
        {"image.png": ["pole"]},
    )


def annotation_of(identity: int, **changes: Any) -> dict[str, Any]:
    return {"id": identity, "image_id": 1, "category_id": 3, "segmentation": [SQUARE], "iscrowd": 0, **changes}


def coco_file(annotations: list[Any], **changes: Any) -> bytes:
    content = {
        "images": [{"id": 1, "file_name": "image.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "pole"}],
    }
    return json.dumps({**content, **changes}).encode()


GOOD_LINE = "0 0.1 0.125 0.3 0.125 0.3 0.375 0.1 0.375"


def yolo(name: str, line: str, reason: str) -> Case:
    """One line that is refused after a good one."""
    files = {"labels/image.txt": f"{GOOD_LINE}\n{line}\n".encode(), "classes.txt": b"pole\ncross arm\n"}
    return Case(f"yolo: {name}", files, [("labels/image.txt", "2", " ".join(line.split()), reason)], {"image.png": ["pole"]})


def labelme(name: str, shape: Any, value: str, reason: str) -> Case:
    """One shape that is refused after a good one."""
    content = {"shapes": [{"label": "pole", "points": [[1, 1], [9, 1], [9, 9]]}, shape], "imagePath": "image.png"}
    files = {"image.json": json.dumps(content).encode()}
    return Case(f"labelme: {name}", files, [("image.json", "shape 2", value, reason)], {"image.png": ["pole"]})


def voc(name: str, thing: str, value: str, reason: str) -> Case:
    """One object that is refused after a good one."""
    files = {"image.xml": voc_file(box_of(1, 1, 9, 9) + thing)}
    return Case(f"voc: {name}", files, [("image.xml", "object 2", value, reason)], {"image.png": ["pole"]})


def voc_file(objects: str, before: str = "") -> bytes:
    return f"{before}<annotation><filename>image.png</filename>{objects}</annotation>".encode()


def box_of(*corners: Any, name: str = "pole") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"


def pictures(*broken: tuple[str, bytes | None, str]) -> list[Case]:
    """An image that cannot be read, beside a good one. None is an image that is not there."""
    cases = []
    for name, content, reason in broken:
        rows = table(("other.jpg", {"objects": [polygon(SQUARE)]}), ("image.png", {"objects": [polygon(SQUARE)]}))
        files = {"labels.csv": rows} if content is None else {"labels.csv": rows, "other.jpg": content}
        file, row = ("labels.csv", "2") if content is None else ("other.jpg", "")
        cases.append(Case(f"image: {name}", files, [(file, row, "other.jpg", reason)], {"image.png": ["pole"]}))
    return cases


def encoded(ending: str) -> bytes:
    ramp = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.uint8)
    return cv2.imencode(ending, ramp)[1].tobytes()


NOT_NUMBER, ENDLESS, BEYOND = "coordinate is not a number", "coordinate is NaN or infinite", "coordinate is beyond any image"
RLE = "broken run-length mask"
CODE = "__import__('os').system('touch hacked')"
BOMB = '<!DOCTYPE a [<!ENTITY b "cccc"><!ENTITY d "&b;&b;&b;&b;">]>'

CASES = [
    labelbox("x is null", polygon([None, *SQUARE[1:]]), '{"value": "pole", "polygon": [{"x": null', f"{NOT_NUMBER}: null"),
    labelbox("x is text", polygon(["10", *SQUARE[1:]]), '{"value": "pole", "polygon": [{"x": "10"', f"{NOT_NUMBER}: '10'"),
    labelbox(
        "x is a truth value", polygon([True, *SQUARE[1:]]), '{"value": "pole", "polygon": [{"x": true', f"{NOT_NUMBER}: True"
    ),
    labelbox("x is a list", polygon([[1], *SQUARE[1:]]), '{"value": "pole", "polygon": [{"x": [1]', f"{NOT_NUMBER}: [1]"),
    labelbox("x is NaN", polygon([NAN, *SQUARE[1:]]), '{"value": "pole", "polygon": [{"x": NaN', ENDLESS),
    labelbox(
        "y is infinite", polygon([1, INFINITY, *SQUARE[2:]]), '{"value": "pole", "polygon": [{"x": 1, "y": Inf', ENDLESS
    ),
    labelbox("y is minus infinity", polygon([1, -INFINITY, *SQUARE[2:]]), '{"value": "pole"', ENDLESS),
    labelbox(
        "x is enormous", polygon([1e300, *SQUARE[1:]]), '{"value": "pole", "polygon": [{"x": 1e+300', f"{BEYOND}: 1e+300"
    ),
    labelbox(
        "x has 400 digits",
        polygon([10**400, *SQUARE[1:]]),
        '{"value": "pole", "polygon": [{"x": 1000',
        f"{BEYOND}: a number",
    ),
    labelbox("no y", {"value": "pole", "polygon": [{"x": 1}] * 4}, '{"value": "pole"', "points are not a list of x and y"),
    labelbox(
        "points are numbers", {"value": "pole", "polygon": [1, 2]}, '{"value": "pole"', "points are not a list of x and y"
    ),
    labelbox("polygon is null", {"value": "pole", "polygon": None}, '{"value": "pole"', "points are not a list of x and y"),
    labelbox("polygon is empty", polygon([]), '{"value": "pole", "polygon": []}', "fewer than 3 points: none"),
    labelbox("one point", polygon([5, 5]), '{"value": "pole"', "fewer than 3 points"),
    labelbox("two points", polygon([5, 5, 9, 9]), '{"value": "pole"', "fewer than 3 points"),
    labelbox("the same point four times", polygon([5, 5] * 4), '{"value": "pole"', "fewer than 3 points"),
    labelbox("points in a row", polygon([5, 5, 9, 9, 20, 20]), '{"value": "pole"', "no area"),
    labelbox("there and back", polygon([5, 5, 9, 5, 20, 5, 9, 5]), '{"value": "pole"', "no area"),
    labelbox(
        "right of the frame", polygon([110, 10, 120, 10, 120, 20]), '{"value": "pole"', "outside the image: x 110 to 120"
    ),
    labelbox(
        "above the frame", polygon([10, -9, 20, -9, 20, -2]), '{"value": "pole"', "outside the image: x 10 to 20, y -9 to -2"
    ),
    labelbox(
        "round a corner", polygon([-40, 20, 20, -40, -40, -40]), '{"value": "pole"', "outside the image: nothing of it"
    ),
    labelbox("no class", {"polygon": points(SQUARE)}, '{"polygon"', "no class name"),
    labelbox("class is a number", polygon(SQUARE, 7), '{"value": 7', "no class name"),
    labelbox("class is blank", polygon(SQUARE, "  "), '{"value": " ', "no class name"),
    labelbox("the same object twice", polygon(SQUARE), '{"value": "pole"', "same object twice"),
    labelbox("object is text", "pole", "pole", "object is not a set of fields: it is text"),
    labelbox("object is null", None, "null", "object is not a set of fields: it is null"),
    labelbox(
        "object without an outline",
        {"value": "pole", "point": {"x": 1, "y": 2}},
        '{"value": "pole"',
        "object has no polygon, line",
    ),
    labelbox(
        "bbox without width", {"value": "pole", "bbox": {"top": 1, "left": 2, "height": 3}}, '{"value"', "bbox needs left"
    ),
    labelbox("line of one point", {"value": "pole", "line": points([5, 5])}, '{"value"', "fewer than 2 points in a line"),
    labelbox(
        "line without length", {"value": "pole", "line": points([5, 5, 5, 5])}, '{"value"', "fewer than 2 points in a line"
    ),
    labelbox("line out of the frame", {"value": "pole", "line": points([200, 0, 200, 50])}, '{"value"', "outside the image"),
    labelbox("line with NaN", {"value": "pole", "line": points([NAN, 0, 9, 9])}, '{"value"', ENDLESS),
    cell("empty", "", "", "empty label"),
    cell("blanks", "   ", "", "empty label"),
    cell("null", "null", "null", "label has no list of objects: it is null"),
    cell("NaN", "NaN", "NaN", "label has no list of objects: it is a number"),
    cell("a list", "[]", "[]", "label has no list of objects: it is a list"),
    cell("objects are null", {"objects": None}, '{"objects": null}', "label has no list of objects"),
    cell("cut off", '{"objects": [{"value": "po', '{"objects": [{"value": "po', "not JSON: "),
    cell("Skip", "Skip", "Skip", "not JSON: "),
    cell("code", CODE, CODE, "not JSON: "),
    cell("code in a literal", f"{{'objects': [{CODE}]}}", "{'objects': [", "not JSON: "),
    cell("a list as a key", "{[]: 1}", "{[]: 1}", "not JSON: "),
    cell("bytes", "{'objects': [b'pole']}", "{'objects'", "not JSON: "),
    cell("a set", "{'objects': {1, 2}}", "{'objects'", "not JSON: "),
    cell("a tuple as a key", "{(1, 2): 3, 'objects': []}", "{(1, 2)", "not JSON: "),
    cell("half a character", "{'objects': [{'value': '\\ud800'}]}", "{'objects'", "not JSON: "),
    cell("a number without end", "{'objects': [" + "9" * 5000 + "]}", "{'objects'", "not JSON: "),
    cell("many minuses", "-" * 100_000 + "1", "----", "not JSON: "),
    cell("a literal that is too long", "{'objects': [" + " " * 1_000_000 + "]}", "{'objects'", "not JSON: "),
    cell("very deep", "[" * 5000, "[[[[", "not JSON: "),
    Case(
        "labelbox: a Python literal with an object that is None",
        {"labels.csv": table(("image.png", str({"objects": [polygon(SQUARE), None], "skipped": True})))},
        [("labels.csv", "2", "null", "object is not a set of fields: it is null")],
        {"image.png": ["pole"]},
    ),
    cell("not UTF-8", '{"objects": [{"value": "p\udcff"}]}', '{"objects": [{"value": "p?', "text is not UTF-8"),
    cell("a number", "12", "12", "label has no list of objects: it is a number"),
    Case(
        "labelbox: no usable label at all loses the image",
        {"labels.csv": table(("image.png", {"objects": [polygon([5, 5])]}))},
        [("labels.csv", "2", '{"value"', "fewer than 3 points"), ("labels.csv", "2", "image.png", LEFT_OUT)],
    ),
    Case(
        "labelbox: a class that is not wanted leaves a picture with nothing on it",
        {"labels.csv": table(("image.png", {"objects": [polygon(SQUARE, "Bird Nest")]}))},
        [("labels.csv", "2", '{"value": "Bird Nest"', "unknown class: bird_nest is not among parse.classes")],
        {"image.png": []},
        {"classes": ("pole",)},
    ),
    Case(
        "labelbox: a second row of an image",
        {"labels.csv": table(*[("image.png", {"objects": [polygon(SQUARE)]})] * 2)},
        [("labels.csv", "3", "image.png", "duplicate row: the image already has labels in labels.csv row 2")],
        {"image.png": ["pole"]},
    ),
    Case(
        "labelbox: a bad first row does not cost the good second one",
        {"labels.csv": table(("image.png", "Skip"), ("IMAGE.JPG", {"objects": [polygon(SQUARE)]}))},
        [("labels.csv", "2", "Skip", "not JSON")],
        {"image.png": ["pole"]},
    ),
    Case(
        "labelbox: no image name",
        {"labels.csv": table(("", {"objects": []}), ("image.png", {"objects": []}))},
        [("labels.csv", "2", ',{"objects": []}', "no image name")],
        {"image.png": []},
    ),
    Case(
        "labelbox: a name that two images fit",
        {
            "labels.csv": table(("twin.png", {"objects": []}), ("image.png", {"objects": []})),
            "a/twin.jpg": None,
            "b/twin.jpg": None,
        },
        [("labels.csv", "2", "twin.png", "several images fit: a/twin.jpg, b/twin.jpg")],
        {"image.png": []},
    ),
    Case(
        "labelbox: a row without a label cell",
        {"labels.csv": b"External ID,Label\nimage.png\n"},
        [("labels.csv", "2", "", "empty label")],
    ),
    coco("crowd", {"iscrowd": 1}, '{"id": 7', "iscrowd"),
    coco("unknown category", {"category_id": 99}, '{"id": 7', "unknown category: category_id 99"),
    coco("category is a list", {"category_id": [3]}, '{"id": 7', "unknown category: category_id [3]"),
    coco("unknown image", {"image_id": 5}, '{"id": 7', "annotation of an unknown image"),
    coco("image id is null", {"image_id": None}, '{"id": 7', "annotation of an unknown image"),
    coco("odd numbers", {"segmentation": [[1, 1, 9, 1, 9]]}, '{"id": 7', "odd number of coordinates"),
    coco("two points", {"segmentation": [[1, 1, 9, 9]]}, '{"id": 7', "fewer than 3 points"),
    coco("null inside", {"segmentation": [[1, 1, 9, 1, 9, None]]}, '{"id": 7', f"{NOT_NUMBER}: null"),
    coco("NaN inside", {"segmentation": [[1, 1, 9, 1, 9, NAN]]}, '{"id": 7', ENDLESS),
    coco("text", {"segmentation": "polygon"}, '{"id": 7', "segmentation is neither polygons nor a mask: polygon"),
    coco("nothing", {"segmentation": []}, '{"id": 7', "no segmentation and no bbox"),
    coco("bbox of nothing", {"segmentation": [], "bbox": [5, 5, 0, 9]}, '{"id": 7', "fewer than 3 points"),
    coco("mask without size", {"segmentation": {"counts": [0, 8000]}}, '{"id": 7', f"{RLE}: size is None"),
    coco(
        "mask too short",
        {"segmentation": {"counts": [5, 5], "size": [HEIGHT, WIDTH]}},
        '{"id": 7',
        f"{RLE}: its runs cover 10",
    ),
    coco(
        "mask with negative runs",
        {"segmentation": {"counts": [-5, 8005], "size": [HEIGHT, WIDTH]}},
        '{"id": 7',
        f"{RLE}: counts",
    ),
    coco(
        "mask text cut off",
        {"segmentation": {"counts": "o", "size": [HEIGHT, WIDTH]}},
        '{"id": 7',
        f"{RLE}: its text is cut off",
    ),
    coco(
        "mask text is no code",
        {"segmentation": {"counts": " é", "size": [HEIGHT, WIDTH]}},
        '{"id": 7',
        f"{RLE}: its text is not",
    ),
    coco(
        "mask larger than an image",
        {"segmentation": {"counts": [1], "size": [10**6, 10**6]}},
        '{"id": 7',
        f"{RLE}: 1000000 x",
    ),
    coco(
        "empty mask", {"segmentation": {"counts": [8000], "size": [HEIGHT, WIDTH]}}, '{"id": 7', "no area: the mask is empty"
    ),
    Case(
        "coco: an annotation that is text",
        {"instances.json": coco_file([annotation_of(1), "pole"])},
        [("instances.json", "annotation number 2", "pole", "annotation is not a set of fields")],
        {"image.png": ["pole"]},
    ),
    Case(
        "coco: an image that is not there",
        {"instances.json": coco_file([], images=[{"id": 1, "file_name": "image.png"}, {"id": 2, "file_name": "gone.png"}])},
        [("instances.json", "image 2", "gone.png", "image not found")],
        {"image.png": []},
    ),
    Case(
        "coco: an image without a file name",
        {"instances.json": coco_file([], images=[{"id": 1, "file_name": "image.png"}, {"id": 2}])},
        [("instances.json", "image 2", '{"id": 2}', "no image name")],
        {"image.png": []},
    ),
    Case(
        "coco: an image id that is there twice",
        {"instances.json": coco_file([], images=[{"id": 1, "file_name": "image.png"}] * 2)},
        [("instances.json", "image 1", '{"id": 1', "image id is there twice")],
        {"image.png": []},
    ),
    Case(
        "coco: labels made for another size",
        {"instances.json": coco_file([], images=[{"id": 1, "file_name": "image.png", "width": 80, "height": 100}])},
        [("instances.json", "image 1", "80 x 100", "labels are for another size: the image is 100 x 80")],
    ),
    yolo("a class that is not named", "5 0.1 0.1 0.2 0.1 0.2 0.2", "unknown class: 5 is not among the 2"),
    yolo("a negative class", "-1 0.1 0.1 0.2 0.1 0.2 0.2", "unknown class: -1"),
    yolo("a class with a fraction", "0.5 0.1 0.1 0.2 0.1 0.2 0.2", "unknown class: 0.5"),
    yolo("words", "pole 0.1 0.1 0.2 0.1 0.2 0.2", "not a number"),
    yolo("NaN", "0 nan 0.1 0.2 0.1 0.2 0.2", ENDLESS),
    yolo("infinity", "0 inf 0.1 0.2 0.1 0.2 0.2", ENDLESS),
    yolo("pixels", "0 10 10 50 10 50 50", "coordinates are not shares of the image: 50"),
    yolo("an odd number", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "odd number of coordinates"),
    yolo("a box among polygons", "0 0.5 0.5 0.2 0.2", "five numbers among polygons"),
    yolo("a class alone", "0", "fewer than 3 points"),
    yolo("outside", "0 1.5 0.1 1.6 0.1 1.6 0.2", "outside the image"),
    yolo("the same line twice", GOOD_LINE, "same object twice"),
    Case(
        "yolo: literal backslash-n",
        {"labels/image.txt": f"{GOOD_LINE}\\n{GOOD_LINE}".encode(), "classes.txt": b"pole\n"},
        [("labels/image.txt", "1", GOOD_LINE, "literal backslash-n")],
    ),
    Case(
        "yolo: not text",
        {"labels/image.txt": b"\xff\xfe\x00\xd8", "classes.txt": b"pole\n"},
        [("labels/image.txt", "", "image.png", "text is not UTF-8")],
    ),
    Case(
        "yolo: labels of an image that is not there",
        {"labels/image.txt": b"", "labels/gone.txt": GOOD_LINE.encode(), "classes.txt": b"pole\n"},
        [("labels/gone.txt", "", "gone", "image not found")],
        {"image.png": []},
    ),
    labelme("two points", {"label": "pole", "points": [[1, 1], [2, 2]]}, '{"label": "pole"', "fewer than 3 points"),
    labelme(
        "one number a point", {"label": "pole", "points": [[1], [2], [3]]}, '{"label"', "points are not a list of x and y"
    ),
    labelme("no points", {"label": "pole"}, '{"label": "pole"}', "shape has no list of points"),
    labelme("no label", {"points": [[1, 1], [9, 1], [9, 8]]}, '{"points"', "no class name"),
    labelme(
        "a point", {"label": "pole", "points": [[1, 1]], "shape_type": "point"}, '{"label"', "unknown shape_type: 'point'"
    ),
    labelme(
        "rectangle of 3",
        {"label": "a", "points": [[1, 1]] * 3, "shape_type": "rectangle"},
        '{"label"',
        "wrong number of points",
    ),
    labelme(
        "circle of text",
        {"label": "a", "points": [["a", 1], [2, 2]], "shape_type": "circle"},
        '{"label"',
        f"{NOT_NUMBER}: 'a'",
    ),
    labelme(
        "circle of nothing",
        {"label": "a", "points": [[5, 5], [5, 5]], "shape_type": "circle"},
        '{"label"',
        "fewer than 3 points",
    ),
    labelme("null point", {"label": "pole", "points": [[None, 1], [9, 1], [9, 8]]}, '{"label"', f"{NOT_NUMBER}: null"),
    Case(
        "labelme: an image that is not there",
        {"other.json": b'{"shapes": [], "imagePath": "../../secret.png"}', "image.json": b'{"shapes": []}'},
        [("other.json", "", '{"shapes": []', "image not found: neither one named like this file nor '../../secret.png'")],
        {"image.png": []},
    ),
    Case(
        "labelme: shapes are no list",
        {"image.json": b'{"shapes": null}'},
        [("image.json", "", '{"shapes": null}', "label has no list of shapes")],
    ),
    voc("no box", "<object><name>pole</name></object>", "pole", "object has no bndbox"),
    voc("a side missing", "<object><name>pole</name><bndbox><xmin>1</xmin></bndbox></object>", "pole1", NOT_NUMBER),
    voc("words", box_of("left", 1, 9, 9), "poleleft", NOT_NUMBER),
    voc("NaN", box_of("nan", 1, 9, 9), "polenan", ENDLESS),
    voc("no name", box_of(1, 1, 30, 30, name=""), "113030", "no class name"),
    voc("no width", box_of(5, 5, 5, 9), "pole5559", "fewer than 3 points"),
    voc("outside", box_of(500, 5, 600, 9), "pole50056009", "outside the image"),
    Case("voc: not XML", {"image.xml": b"<annotation><object>"}, [("image.xml", "", "<annotation><object>", "not XML")]),
    Case("voc: entities", {"image.xml": voc_file("", BOMB)}, [("image.xml", "", "<!DOCTYPE", "XML has a document type")]),
    Case(
        "voc: labels made for another size",
        {"image.xml": voc_file("<size><width>50</width><height>40</height></size>")},
        [("image.xml", "", "50 x 40", "labels are for another size: the image is 100 x 80")],
    ),
    *pictures(
        ("missing", None, "image not found"),
        ("empty", b"", "image cannot be read: an empty file"),
        ("text", b"<html>404 not found</html>", "image cannot be read: not an image"),
        ("cut off JPEG", encoded(".jpg")[:-200], "image cannot be read: image file is truncated"),
        ("cut off PNG", encoded(".png")[:-80], "image cannot be read: "),
        ("header alone", encoded(".jpg")[:120], "image cannot be read: "),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_cannot_be_used_is_quarantined_and_the_rest_kept(case: Case, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name, content in {"image.png": None, **case.files}.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(encoded(Path(name).suffix) if content is None else content)
    settings = SegmentationParse.model_validate(case.settings)

    with Tally(tmp_path / "quarantine.csv", settings.shares) as tally:
        kept = list(tally.accepted(parse(raw, settings, processes=1)))

    with (tmp_path / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        rows = [tuple(row) for row in csv.reader(file)][1:]
    assert [row[:2] for row in rows] == [expected[:2] for expected in case.refused]
    for (_, _, value, reason), expected in zip(rows, case.refused, strict=True):
        assert value.startswith(expected[2]) if expected[2] else value == ""
        assert reason.startswith(expected[3])
    assert {record.key: names_of(record) for record in kept} == case.kept
    assert not Path("hacked").exists()


def names_of(record: Record) -> list[str]:
    return [thing["name"] for thing in record.targets["objects"]]


def test_the_table_is_long_enough_and_names_each_case_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
