"""How fast labels are read: ours against json + pandas (the way of the original project) and Ultralytics' convert_coco.

Usage:
    python -m benchmarks.parse            30,000 rows, medians of 3, writes benchmarks/results/parse.json
    python -m benchmarks.parse --quick    600 rows, once, writes nothing

All read the same labels: rows of 12 polygons and lines, about 11 KB of JSON each. The numbers in them differ from row to row
only in part (256 labels take turns), and all images are links to 32 small pictures, so that decoding real photographs, which
takes longer than reading labels, is not what is measured. `does` says what each contender does with a row. To compare like
with like, take

* ours with json_pandas_checked: both decode every picture to the end;
* ours_headers_only with json_pandas: both read the headers of the pictures alone, and would let a broken one through;
* ours_coco with convert_coco: the same file, but only ours opens the pictures.

Ours is the whole stage every time: it also judges every number, outline and class, buffers lines to outlines, refuses what
is there twice, and writes Arrow records, quarantine, facts and near-duplicates. None of the others does any of that.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from PIL import Image

from contracts.files import write_json
from contracts.workload import load, validate
from tasks.parse import parse, usable_processes
from workloads.segmentation.labels import judging
from workloads.segmentation.labels.pictures import Picture
from workloads.segmentation.yolo import prepare_ultralytics

RESULT = Path(__file__).parent / "results" / "parse.json"
FULL = 30_000
WIDTH, HEIGHT = 320, 240
NUM_OBJECTS, NUM_CORNERS, NUM_LABELS, NUM_PICTURES = 12, 33, 256, 32
DOES = {
    "ours": "reads CSV and JSON, judges every number, outline, class and image (decoded to the end), writes records",
    "ours_all_cores": "the same in a process for each core, their start included",
    "ours_headers_only": "the same in one process, but only the header of an image is read: no check, no fingerprint",
    "ours_coco": "as ours, from the COCO file; a line is there an outline that crosses itself, which is repaired",
    "json_pandas": "reads CSV and JSON and the headers of images, writes YOLO text; checks nothing",
    "json_pandas_checked": "the same, and decodes every image with Pillow, as one must to notice a truncated one",
    "convert_coco": "reads COCO's JSON, writes YOLO text; opens no image, checks nothing",
}
CLASSES = ("pole", "crossarm", "insulator", "conductor")


def objects(rng: np.random.Generator) -> list[dict[str, Any]]:
    """The objects of one label: eleven outlines round a middle, and a line."""
    found = []
    for index in range(NUM_OBJECTS):
        middle, angles = rng.uniform((60, 60), (WIDTH - 60, HEIGHT - 60)), np.linspace(0, 6.2, NUM_CORNERS)
        reach = rng.uniform(20, 50, (NUM_CORNERS, 1))
        corners = np.round(middle + reach * np.stack([np.cos(angles), np.sin(angles)], 1), 2)
        points = [{"x": x, "y": y} for x, y in corners.tolist()]
        last = index == NUM_OBJECTS - 1
        found.append(
            {"value": "conductor", "line": points[:6]} if last else {"value": CLASSES[index % 3], "polygon": points}
        )
    return found


def write_inputs(folder: Path, rows: int) -> dict[str, float]:
    """A Labelbox CSV, the same polygons as COCO JSON, and `rows` images; gives the mean size of a label."""
    rng = np.random.default_rng(0)
    labels = [objects(rng) for _ in range(NUM_LABELS)]
    texts = [json.dumps({"objects": one}) for one in labels]
    images = folder / "labelbox" / "images"
    images.mkdir(parents=True)
    (folder / "coco").mkdir()
    for index in range(NUM_PICTURES):
        blotches = rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index}.jpg"), cv2.resize(blotches, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    with (folder / "labelbox" / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["External ID", "Label"])
        for row in range(rows):
            os.link(folder / f"{row % NUM_PICTURES}.jpg", images / f"{row:06d}.jpg")
            table.writerow([f"{row:06d}.JPG", texts[row % NUM_LABELS]])
    write_coco(folder / "coco" / "instances.json", labels, rows)
    return {"label_bytes": statistics.mean(map(len, texts)), "objects": NUM_OBJECTS}


def write_coco(path: Path, labels: list[list[dict[str, Any]]], rows: int) -> None:
    """The polygons of `rows` rows as COCO instances; lines as outlines, which COCO has alone."""
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    images = [{"id": row, "file_name": f"{row:06d}.jpg", "width": WIDTH, "height": HEIGHT} for row in range(rows)]
    parts = []
    for label in labels:
        flat = [
            [value for point in one["polygon" if "polygon" in one else "line"] for value in point.values()] for one in label
        ]
        boxes = [[min(one[::2]), min(one[1::2]), np.ptp(one[::2]), np.ptp(one[1::2])] for one in flat]
        ids = [CLASSES.index(one["value"]) + 1 for one in label]
        parts.append(
            [
                json.dumps({"category_id": c, "bbox": b, "segmentation": [f]})
                for c, b, f in zip(ids, boxes, flat, strict=True)
            ]
        )
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for row in range(rows):
            for index, part in enumerate(parts[row % NUM_LABELS]):
                comma = "," if row or index else ""
                file.write(f'{comma}{{"id": {row * NUM_OBJECTS + index}, "image_id": {row}, "iscrowd": 0, {part[1:]}')
        file.write("]}")


def header_only(path: Path) -> Picture:
    """What `pictures.look` gives, without decoding anything."""
    with Image.open(path) as image:
        return Picture(*image.size, 1, b"")


def ours_headers_only(folder: Path, output: Path) -> None:
    with mock.patch.object(judging, "look", header_only):
        ours(folder, output)


def ours(folder: Path, output: Path, *, processes: int = 1, labels: str = "labelbox") -> None:
    workload = load("segmentation")
    chosen = {"format": labels, "labels": labels, "images": "labelbox/images"}
    settings = validate(workload.Settings, {"parse": chosen}, where="segmentation")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        summary = parse(workload, settings, folder, output, processes=processes)
    assert summary["labels"], "nothing was read"


def with_pandas(folder: Path, output: Path, *, checked: bool = False) -> None:
    """CSV to YOLO text as one would write it: read_csv, json.loads, a loop; `checked` decodes every image to the end."""
    import pandas

    output.mkdir()
    table = pandas.read_csv(folder / "labelbox" / "labels.csv")
    for name, label in zip(table["External ID"], table["Label"], strict=True):
        stem = Path(name).stem
        with Image.open(folder / "labelbox" / "images" / f"{stem}.jpg") as image:
            width, height = image.size
            if checked:
                image.load()
        lines = []
        for thing in json.loads(label)["objects"]:
            points = thing.get("polygon") or thing["line"]
            values = " ".join(f"{point['x'] / width:.6f} {point['y'] / height:.6f}" for point in points)
            lines.append(f"{CLASSES.index(thing['value'])} {values}")
        (output / f"{stem}.txt").write_text("\n".join(lines) + "\n")


def with_convert_coco(folder: Path, output: Path) -> None:
    from ultralytics.data.converter import convert_coco

    convert_coco(str(folder / "coco"), str(output), use_segments=True, cls91to80=False)


def seconds(work: Callable[[], None], output: Path) -> tuple[float, float]:
    """Wall-clock and processor time of `work` and its processes; its output is deleted afterwards."""
    wall, used = time.perf_counter(), sum(os.times()[:4])
    work()
    taken = time.perf_counter() - wall, sum(os.times()[:4]) - used
    shutil.rmtree(output, ignore_errors=True)
    return taken


def contenders(folder: Path, output: Path) -> dict[str, Callable[[], None]]:
    return {
        "ours": lambda: ours(folder, output),
        "ours_all_cores": lambda: ours(folder, output, processes=usable_processes()),
        "ours_headers_only": lambda: ours_headers_only(folder, output),
        "ours_coco": lambda: ours(folder, output, labels="coco"),
        "json_pandas": lambda: with_pandas(folder, output),
        "json_pandas_checked": lambda: with_pandas(folder, output, checked=True),
        "convert_coco": lambda: with_convert_coco(folder, output),
    }


def rounds(rows: int, repeats: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Times of all contenders, who take turns, after a round of 32 rows that is not counted (imports)."""
    prepare_ultralytics()
    with tempfile.TemporaryDirectory() as first:
        write_inputs(Path(first), 32)
        for work in contenders(Path(first), Path(first) / "output").values():
            seconds(work, Path(first) / "output")
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output"
        shape = write_inputs(Path(place), rows)
        works = contenders(Path(place), output)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for turn in range(repeats):
            for name, work in works.items():
                taken[name].append(seconds(work, output))
                print(
                    f"round {turn + 1}: {name} {taken[name][-1][0]:.2f} s, {rows / taken[name][-1][0]:,.0f} rows/s",
                    flush=True,
                )
    return taken, shape


def measure(rows: int, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` rounds, and how many times as fast ours is."""
    taken, shape = rounds(rows, repeats)
    wall = {name: statistics.median(one[0] for one in times) for name, times in taken.items()}
    processor = {name: statistics.median(one[1] for one in times) for name, times in taken.items()}
    best = {name: min(one[1] for one in times) for name, times in taken.items()}
    mine = [name for name in wall if name.startswith("ours")]
    others = [name for name in wall if name not in mine]
    return {
        "rows": rows,
        "note": note(rows),
        "does": DOES,
        **shape,
        "image": f"{WIDTH} x {HEIGHT} JPEG, links to {NUM_PICTURES} files",
        "machine": {"cores": usable_processes(), "python": platform.python_version()},
        "repeats": repeats,
        "wall_seconds": wall,
        "processor_seconds": processor,
        "rows_per_second": {name: rows / value for name, value in wall.items()},
        **{f"times_as_fast_as_{other}": {name: wall[other] / wall[name] for name in mine} for other in others},
        "times_as_fast_by_processor_time": {
            other: {name: processor[other] / processor[name] for name in mine} for other in others
        },
        "times_as_fast_by_best_processor_time": {
            other: {name: best[other] / best[name] for name in mine} for other in others
        },
        "every_round": {name: [[round(value, 3) for value in one] for one in times] for name, times in taken.items()},
    }


def note(rows: int) -> str:
    """What a reader must know before quoting the numbers."""
    fewer = "" if rows >= FULL else f"{rows:,} rows instead of {FULL:,}, to keep the run under five minutes; "
    busy = f"{os.getloadavg()[0]:.1f} processes were running at the end" if hasattr(os, "getloadavg") else "load unknown"
    return f"{fewer}{busy}: on a busy machine trust processor time more than wall time, and the best round most"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=FULL)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--quick", action="store_true", help="600 rows, one round, no result file")
    chosen = arguments.parse_args()
    result = measure(600, 1) if chosen.quick else measure(chosen.rows, chosen.repeats)
    if not chosen.quick:
        write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
