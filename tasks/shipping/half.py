"""The fp16 recipe: torch modules exported in half precision, with the same inputs and outputs as before."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import nn

from contracts.settings import ExportSettings
from contracts.workload import Graph
from tasks.export import write_onnx


class Half(nn.Module):
    """A module that computes in half precision, takes whatever it took and gives float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.module(*(one.half() if one.is_floating_point() else one for one in inputs))
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return tuple(one.float() if one.is_floating_point() else one for one in outputs)


def write_half(graph: Graph, path: Path, settings: ExportSettings) -> None:
    """Write one graph in half precision as ONNX."""
    write_onnx(dataclasses.replace(graph, module=Half(graph.module).eval()), path, settings)
