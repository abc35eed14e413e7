"""Weights of 4 bits reach the whole of a captioner's language model, whatever its architecture calls its layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from contracts.settings import ExportSettings
from tasks.export import write_onnx
from tasks.shipping.quantizing import weight_only_int4
from workloads.captioning.graph import Decode, kept_of

# Linear layers of one layer of the model, and its kind: Llama has q, k, v, o, gate, up, down; GPT-2 qkv, o, up, down.
KINDS = {"llama": 7, "gpt2": 4}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_linear_layer_of_the_decoder_stays_in_float(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from contracts.workload import Graph

    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96}
    own = {"intermediate_size": 128} if kind == "llama" else {"n_inner": 128}
    config = AutoConfig.for_model(kind, **sizes, **own, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        past = kept_of(model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True))
    names = [f"{index}" for index in range(len(past))]
    growing = {f"past_{name}": {0: "batch", 2: "length"} for name in names}
    inputs = {"ids": np.array([[7]]), **{f"past_{name}": one.numpy() for name, one in zip(names, past, strict=True)}}
    outputs = ["logits", *(f"present_{name}" for name in names)]
    graph = Graph(Decode(model).eval(), inputs, outputs, {"ids": {0: "batch"}, **growing})
    write_onnx(graph, tmp_path / "full.onnx", ExportSettings())
    weight_only_int4(tmp_path / "full.onnx", tmp_path / "small.onnx")
    found = onnx.load(tmp_path / "small.onnx").graph
    constants = {one.name for one in found.initializer}
    kinds = Counter(node.op_type for node in found.node)
    assert kinds["MatMulNBits"] == 2 * KINDS[kind] + 1, "two layers and the output layer"
    left = [node.name for node in found.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]
    assert not left
