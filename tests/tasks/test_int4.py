"""Weights of 4 bits: for language decoders alone, far smaller, and nearly the same numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from contracts.files import write_json
from contracts.settings import ExportSettings
from contracts.workload import Graph
from tasks.export import describe_graph, write_onnx
from tasks.quantize import four_bits
from tasks.shipping.quantizing import as_matrix_products, weight_only_int4


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


class Speaker(nn.Module):
    """The layers of language models as exporters write them: with a bias on rows (Gemm), without (MatMul), and the table of
    words as the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(320, 64)
        self.rows, self.plain = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self.words(ids)
        found = found + self.rows(found.reshape(-1, 64)).reshape(found.shape).tanh()
        return nn.functional.linear(found + self.plain(found).tanh(), self.words.weight)


def test_four_bits_reach_every_linear_layer_and_the_table_of_words_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = Graph(Speaker().eval(), {"ids": np.zeros((1, 3), np.int64)}, ["logits"], {"ids": {0: "batch"}})
    write_onnx(graph, tmp_path / "full.onnx", ExportSettings())
    model = onnx.load(tmp_path / "full.onnx")
    assert {"Gemm", "Transpose"} <= {node.op_type for node in model.graph.node}, "the exporter writes these no more"
    same = onnx.load(tmp_path / "full.onnx")
    as_matrix_products(same)
    onnx.save(same, tmp_path / "same.onnx")
    weight_only_int4(tmp_path / "full.onnx", tmp_path / "small.onnx")
    ids = np.random.default_rng(0).integers(0, 320, (5, 3))
    full, again, small = (
        np.asarray(onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, {"ids": ids})[0])
        for name in ("full", "same", "small")
    )
    assert np.abs(again - full).max() < 1e-4 * np.abs(full).max()
    assert 0 < np.abs(small - full).max() < 0.2 * np.abs(full).max()
    graph_now = onnx.load(tmp_path / "small.onnx").graph
    kinds = Counter(node.op_type for node in graph_now.node)
    assert kinds["MatMulNBits"] == 3 and not {"Gemm", "MatMul", "Transpose"} & set(kinds)
    floats = [one for one in graph_now.initializer if one.data_type == onnx.TensorProto.FLOAT]
    assert [list(one.dims) for one in floats if np.prod(one.dims) >= 64 * 64] == [[320, 64]], "the table alone, and once"


def test_a_model_without_a_language_decoder_is_left_out_of_it(exported: Path) -> None:
    write_json(exported / "artifact.json", {"graphs": {"encoder": {"file": "graphs/encoder.onnx"}}})
    assert four_bits(exported) == "int4 is for the weights of language decoders, and no graph of this model is one"
