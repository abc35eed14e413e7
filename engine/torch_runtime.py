"""Runs a workload's graphs with torch, behind the same call as the files that ship: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from contracts.workload import Arrays, Graph, Run
from engine.memory import is_out_of_memory


def torch_run(graphs: Mapping[str, Graph], device: str | torch.device) -> Run:
    """`run("graph", **arrays)` computed by the torch modules on `device` ("cpu", "cuda"), which moves them there.

    Where memory runs out, a batch is computed in halves, if the graph lets its first axis vary.

    Raises (when called):
        KeyError: for a graph that does not exist; the message names those that do.
    """
    modules = {name: graph.module.to(device).eval() for name, graph in graphs.items()}

    @torch.inference_mode()
    def run(graph: str, /, **arrays: np.ndarray) -> Arrays:
        if graph not in modules:
            raise KeyError(f"no graph {graph!r}; there are: {', '.join(modules)}")
        try:
            return compute(graph, arrays)
        except Exception as error:
            if not is_out_of_memory(error) or not _divides(graphs[graph], arrays):
                raise
        middle = len(next(iter(arrays.values()))) // 2
        halves = [
            run(graph, **{name: value[part] for name, value in arrays.items()})
            for part in (slice(middle), slice(middle, None))
        ]
        return {name: np.concatenate([half[name] for half in halves]) for name in graphs[graph].outputs}

    def compute(graph: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
        tensors = [torch.from_numpy(np.ascontiguousarray(arrays[name])).to(device) for name in graphs[graph].inputs]
        results = modules[graph](*tensors)
        results = (results,) if isinstance(results, torch.Tensor) else results
        return {name: as_array(value) for name, value in zip(graphs[graph].outputs, results, strict=True)}

    return run


def _divides(graph: Graph, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the inputs can be cut along their first axis: it varies in all of them, and there is more than one row."""
    varies = all(0 in graph.dynamic.get(name, {}) for name in graph.inputs)
    return varies and all(len(arrays[name]) > 1 for name in graph.inputs)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor in host memory; half precisions become float32, as numpy has no bfloat16."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
