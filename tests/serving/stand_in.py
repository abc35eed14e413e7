"""A model that needs no training: an ONNX graph with segmentation's signature that finds what is blue, green or red."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("blue", "green", "red")
SCORE = 0.9


def write_artifact(folder: Path, *, size: int = 64, **settings: Any) -> Path:
    """An artifact that finds one object a colour: its exact box (on a grid of 4 pixels), its mask, the score 0.9."""
    (folder / "graphs").mkdir(parents=True)
    onnx.save(colour_finder(size), folder / "graphs" / "segment.onnx")
    graph = {
        "file": "graphs/segment.onnx",
        "inputs": {"images": {"dtype": "uint8", "shape": ["batch", size, size, 3]}},
        "outputs": ["predictions", "protos"],
    }
    artifact = {
        "workload": "segmentation",
        "settings": {"train": {"image_size": size}, **settings},
        "facts": {"classes": list(CLASSES), "num_records": 0},
        "graphs": {"segment": graph},
        "recipe": "fp32",
        "preprocessing": {},
    }
    (folder / "artifact.json").write_text(json.dumps(artifact))
    return folder


def colour_finder(size: int) -> onnx.ModelProto:
    """uint8 images [batch, size, size, 3] to predictions [batch, 4 + 3 + 3, 3] and protos [batch, 3, size / 4, size / 4]."""
    cells = size // 4
    eye = np.eye(3, dtype=np.float32)[None]
    constants = {
        "half": np.float32(127.5),
        "edge": np.float32(0.383),  # bilinear enlargement by 4 leaves 0.391 in a corner pixel, 0.375 just outside a side
        "zero": np.float32(0),
        "two": np.float32(2),
        "score": np.float32(SCORE),
        "eye": eye,
        "channel": np.array([1], np.int64),
        "right": (np.arange(cells, dtype=np.float32) + 1) * 4,
        "from_end": size - np.arange(cells, dtype=np.float32) * 4,
        "size": np.float32(size),
    }
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["images"], "pixels", {"to": TensorProto.FLOAT}),
        ("Transpose", ["pixels"], "planes", {"perm": [0, 3, 1, 2]}),
        ("AveragePool", ["planes"], "pooled", {"kernel_shape": [4, 4], "strides": [4, 4]}),
        ("Greater", ["pooled", "half"], "bright", {}),
        ("Cast", ["bright"], "mask", {"to": TensorProto.FLOAT}),
        ("Sub", ["mask", "edge"], "protos", {}),
    ]
    sides = []
    for axis, name in ((2, "x"), (3, "y")):  # the columns that are bright anywhere give x, the rows y
        high, low = f"{name}_high", f"{name}_low"
        steps += [
            ("ReduceMax", ["mask"], f"{name}_seen", {"axes": [axis], "keepdims": 0}),
            ("Mul", [f"{name}_seen", "right"], f"{name}_ends", {}),
            ("ReduceMax", [f"{name}_ends"], high, {"axes": [2], "keepdims": 0}),
            ("Mul", [f"{name}_seen", "from_end"], f"{name}_starts", {}),
            ("ReduceMax", [f"{name}_starts"], f"{name}_back", {"axes": [2], "keepdims": 0}),
            ("Sub", ["size", f"{name}_back"], low, {}),
            ("Add", [low, high], f"{name}_sum", {}),
            ("Div", [f"{name}_sum", "two"], f"{name}_centre", {}),
            ("Sub", [high, low], f"{name}_side", {}),
        ]
        sides += [f"{name}_centre", f"{name}_side"]
    order = [sides[0], sides[2], sides[1], sides[3]]
    steps += [("Unsqueeze", [one, "channel"], f"{one}_row", {}) for one in order]
    steps += [
        ("ReduceMax", ["mask"], "present", {"axes": [2, 3], "keepdims": 0}),
        ("Mul", ["present", "score"], "scored", {}),
        ("Unsqueeze", ["scored", "channel"], "scored_row", {}),
        ("Mul", ["scored_row", "eye"], "scores", {}),
        ("Mul", ["scored_row", "zero"], "nothing", {}),
        ("Add", ["nothing", "eye"], "coefficients", {}),
        ("Concat", [*(f"{one}_row" for one in order), "scores", "coefficients"], "predictions", {"axis": 1}),
    ]
    nodes = [helper.make_node(kind, inputs, [output], **attributes) for kind, inputs, output, attributes in steps]
    outputs = [
        helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["batch", 10, 3]),
        helper.make_tensor_value_info("protos", TensorProto.FLOAT, ["batch", 3, cells, cells]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "colour_finder", [images], outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def picture(width: int, height: int, **rectangles: tuple[int, int, int, int]) -> np.ndarray:
    """A black picture with a filled rectangle (x1, y1, x2, y2, end exclusive) for each colour named."""
    canvas = np.zeros((height, width, 3), np.uint8)
    for name, (x1, y1, x2, y2) in rectangles.items():
        canvas[y1:y2, x1:x2, CLASSES.index(name)] = 255
    return canvas


def write_picture(path: Path, image: np.ndarray) -> Path:
    """The picture in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path
