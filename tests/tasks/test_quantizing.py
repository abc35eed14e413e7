"""The recipes themselves, on a graph of one product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from contracts.workload import Arrays
from tasks.shipping.quantizing import dynamic_int8, static_int8

ROWS, WIDTH, COLUMNS = 4, 64, 16


def ones(path: Path) -> Path:
    """A graph that multiplies [ROWS, WIDTH] by ones, and takes nothing away behind it."""
    weights = numpy_helper.from_array(np.ones((WIDTH, COLUMNS), np.float32), "weights")
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, size]) for name, size in (("x", WIDTH), ("y", COLUMNS))
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"], "product")], "ones", [given], [made], [weights]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def large() -> Arrays:
    return {"x": np.ones((ROWS, WIDTH), np.float32)}


def samples() -> Iterator[Arrays]:
    yield large()


@pytest.mark.parametrize(
    "recipe", [dynamic_int8, partial(static_int8, samples=samples(), keep=())], ids=["dynamic", "static"]
)
def test_large_products_overflow_on_no_processor(recipe: Callable[[Path, Path], None], tmp_path: Path) -> None:
    """Pairs of them are added in 16 bits where there is no VNNI: two of 255 x 127 are too many, two of 255 x 64 are not."""
    recipe(ones(tmp_path / "fp32.onnx"), tmp_path / "int8.onnx")
    stored = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    weights = next(one for one in stored if one.shape == (WIDTH, COLUMNS))
    assert weights.dtype == np.int8 and 60 < np.abs(weights.astype(int)).max() <= 64
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    found = np.asarray(session.run(None, large())[0])
    assert np.allclose(found, WIDTH, rtol=0.01)
