"""Weights of 4 bits: for language decoders alone, far smaller, and nearly the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from contracts.files import write_json
from contracts.settings import ExportSettings
from contracts.workload import Graph
from tasks.export import describe_graph, write_onnx
from tasks.quantize import four_bits


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Two graphs of the same layers, of which one says that it is a language decoder."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64)).eval()
    graphs = {
        name: Graph(
            layers, {"rows": np.zeros((1, 3, 256), np.float32)}, ["scores"], {"rows": {0: "batch"}}, language_decoder=decoder
        )
        for name, decoder in (("encoder", False), ("decode", True))
    }
    for name, graph in graphs.items():
        write_onnx(graph, tmp_path / "graphs" / f"{name}.onnx", ExportSettings())
    described = {name: describe_graph(name, graph) for name, graph in graphs.items()}
    write_json(tmp_path / "artifact.json", {"graphs": described})
    return tmp_path


def computed(path: Path, rows: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(str(path)).run(None, {"rows": rows})[0])


def test_the_decoders_weights_shrink_and_other_graphs_stay(exported: Path, tmp_path: Path) -> None:
    build = four_bits(exported)
    assert callable(build)
    rows = np.random.default_rng(0).normal(size=(5, 3, 256)).astype(np.float32)
    for name in ("encoder", "decode"):
        source, target = exported / "graphs" / f"{name}.onnx", tmp_path / f"{name}.int4.onnx"
        build(source, target, name)
        full, small = (computed(path, rows) for path in (source, target))
        share = float(np.abs(small - full).max() / np.abs(full).max())
        if name == "encoder":
            assert target.read_bytes() == source.read_bytes()
        else:
            assert target.stat().st_size < 0.3 * source.stat().st_size
            assert 0 < share < 0.2


def test_a_model_without_a_language_decoder_is_left_out_of_it(exported: Path) -> None:
    write_json(exported / "artifact.json", {"graphs": {"encoder": {"file": "graphs/encoder.onnx"}}})
    assert four_bits(exported) == "int4 is for the weights of language decoders, and no graph of this model is one"
