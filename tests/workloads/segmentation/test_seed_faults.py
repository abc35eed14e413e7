"""The original's reproduced faults that no other test would notice coming back.

Each fault, and the test that covers it (those without a file are here):

- A literal backslash-n in label files: test_labels_malformed.py (case "yolo: literal backslash-n"); images with several
  objects kept whole: test_dataset.py::test_without_augmentation_every_object_of_a_record_arrives.
- Two-point lines read as boxes: test_labels.py::test_a_line_becomes_a_band_of_the_set_width.
- Longer polylines filled as polygons: test_a_line_of_several_points_is_a_band_and_not_what_it_surrounds.
- `eval()` on the label cell: test_labels_malformed.py (case "labelbox: code", and `hacked` is never written).
- JSON null or NaN ending the run: test_labels_malformed.py (cases "null", "NaN", "x is null", "x is NaN").
- The DDP trainer that never ran: tests/engine/test_loop.py::test_two_ranks_train_the_weights_of_one.
- A `best.pt` that `YOLO()` refused: test_objective.py::test_the_saved_weights_open_with_yolo_and_predict_the_same.
- Partial downloads counted as complete: tests/tasks/test_download.py::test_a_length_that_is_not_kept_is_an_error_and_nothing_is_complete.
- Parsing at 211 rows a second: benchmarks/parse.py measures it.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely

from contracts.records import Record
from workloads.segmentation.labels import parse
from workloads.segmentation.settings import SegmentationParse


def _write(raw: Path, labels: dict[str, dict[str, Any]]) -> None:
    """Grey pictures of 320 x 240 with these labels in a Labelbox CSV."""
    picture = cv2.imencode(".jpg", np.full((240, 320, 3), 127, np.uint8))[1].tobytes()
    with (raw / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["External ID", "Label"])
        for name, label in labels.items():
            (raw / name).write_bytes(picture)
            table.writerow([name, json.dumps(label)])


def test_a_line_of_several_points_is_a_band_and_not_what_it_surrounds(tmp_path: Path) -> None:
    corners = [(20, 20), (200, 20), (200, 200), (20, 200)]  # three sides of a square: filled, it would be the square
    line = [{"x": x, "y": y} for x, y in corners]
    _write(tmp_path, {"a.jpg": {"objects": [{"value": "conductor", "line": line}]}})
    (record,) = parse(tmp_path, SegmentationParse(line_width=4), processes=1)
    assert isinstance(record, Record)
    (thing,) = record.targets["objects"]
    (ring,) = (np.asarray(part, float).reshape(-1, 2) for part in thing["polygons"])
    band = shapely.Polygon(ring)
    assert not band.contains(shapely.Point(110, 110))
    assert all(band.covers(shapely.Point(corner)) for corner in corners)
    assert abs(band.area - 3 * 180 * 4) < 50
