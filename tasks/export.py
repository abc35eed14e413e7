"""Stage export: the graphs as ONNX files, and the proof on real records that they compute what torch computes."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import SlipwayError
from contracts.files import remove, replace_when_complete, write_json
from contracts.settings import ExportSettings, Settings
from contracts.workload import Facts, Graph, Layout, Run
from tasks.shipping.parity import check_layout, check_parity
from tasks.shipping.storing import with_data, write_model
from tasks.stage import folder, stage_main
from tasks.trained import Trained

if TYPE_CHECKING:
    import onnx


def run(workload: str) -> None:
    """Write data/export/`workload`: artifact.json, graphs/*.onnx, parity.json, and below layout/ the graphs that lie elsewhere
    in the published folder, as other tools look for them there.

    Raises:
        SlipwayError: when a graph differs from torch by more than the tolerance; then nothing stands in that folder.
    """
    trained = Trained.open(workload)
    graphs, layout = trained.graphs(), trained.layout()
    try:
        with replace_when_complete(folder("export", workload)) as output:
            write_artifact(output, graphs, workload=trained.name, settings=trained.settings, facts=trained.facts)
            parity = check_parity(trained, graphs, output)
            if layout:
                for name, graph in layout.graphs.items():
                    write_onnx(graph, output / "layout" / f"{name}.onnx", trained.settings.export)
                parity["layout"] = check_layout(trained, layout, opened(output / "layout", layout), parity["metric"])
            write_json(output / "parity.json", parity)
            if trained.settings.export.tensorrt:
                write_engines(output, graphs)
    except SlipwayError:
        remove(folder("export", workload))
        raise
    print(
        f"{workload}: {len(graphs)} graph(s) exported; the largest difference from torch is {parity['worst']:.1e} of an output's "
        f"range over {parity['num_records']} records (tolerance {parity['tolerance']:g})"
    )


def opened(place: Path, layout: Layout) -> Run:
    """A layout's files below `place`, run by ONNX Runtime as they are described."""
    from serving.runtime import Artifact, Runtime, num_cores

    described = {name: {**describe_graph(name, graph), "file": f"{name}.onnx"} for name, graph in layout.graphs.items()}
    artifact = Artifact(place, workload="", settings={}, facts={}, graphs=described, recipe="fp32")
    return Runtime(artifact, threads=num_cores(), providers=["CPUExecutionProvider"])


def write_artifact(output: Path, graphs: Mapping[str, Graph], *, workload: str, settings: Settings, facts: Facts) -> None:
    """graphs/<name>.onnx and the artifact.json that describes them."""
    for name, graph in graphs.items():
        write_onnx(graph, output / "graphs" / f"{name}.onnx", settings.export)
    described = describe(graphs, workload=workload, settings=settings, facts=facts)
    write_json(output / "artifact.json", with_data(described, output))


def describe(graphs: Mapping[str, Graph], *, workload: str, settings: Settings, facts: Facts) -> dict[str, Any]:
    """artifact.json: everything that serving needs besides the files themselves."""
    return {
        "workload": workload,
        "settings": settings.model_dump(mode="json"),
        "facts": dict(facts),
        "recipe": "fp32",
        "graphs": {name: describe_graph(name, graph) for name, graph in graphs.items()},
        "preprocessing": {name: dict(graph.preprocessing) for name, graph in graphs.items()},
    }


def describe_graph(name: str, graph: Graph) -> dict[str, Any]:
    """File, inputs (dtype, and shape with names for the axes that vary) and outputs of one graph."""
    inputs = {}
    for key, example in graph.inputs.items():
        varying = graph.dynamic.get(key, {})
        inputs[key] = {
            "dtype": str(example.dtype),
            "shape": [varying.get(axis, size) for axis, size in enumerate(example.shape)],
        }
    described = {"file": f"graphs/{name}.onnx", "inputs": inputs, "outputs": list(graph.outputs)}
    return {**described, "language_decoder": True} if graph.language_decoder else described


def write_onnx(graph: Graph, path: Path, settings: ExportSettings) -> None:
    """Write one graph as an ONNX file, large weights beside it: the same bytes for the same weights, and no path of this machine
    in them."""
    import onnx
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    axes = {name: torch.export.Dim(name) for varying in graph.dynamic.values() for name in varying.values()}
    varying = tuple({axis: axes[label] for axis, label in graph.dynamic.get(name, {}).items()} for name in graph.inputs)
    with quiet_exporter():
        program = torch.onnx.export(
            graph.module,
            tuple(torch.from_numpy(example) for example in tracing_examples(graph).values()),
            dynamo=True,
            opset_version=settings.opset,
            external_data=False,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=(varying,) if takes_any_number(graph) else varying,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip(model)
    write_model(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def takes_any_number(graph: Graph) -> bool:
    """Whether the module's forward is written as `forward(*inputs)`: torch.export then sees one input, a tuple."""
    parameters = inspect.signature(graph.module.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def tracing_examples(graph: Graph) -> dict[str, np.ndarray]:
    """The examples with at least 2 along every axis that varies: torch.export takes a 1 for a constant."""
    examples = {}
    for name, example in graph.inputs.items():
        for axis in graph.dynamic.get(name, {}):
            example = np.repeat(example, 2, axis=axis) if example.shape[axis] == 1 else example
        examples[name] = np.ascontiguousarray(example)
    return examples


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter without its notes on plain attributes that a forward assigns: they are constants of the graph here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
            warnings.filterwarnings("ignore", message="# The axis name: .* will not be used")  # several inputs share it
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold stack traces with this machine's paths."""
    graph = model.graph
    for item in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def write_engines(output: Path, graphs: Mapping[str, Graph]) -> None:
    """A TensorRT engine beside each ONNX file, where tensorrt is installed; otherwise says how to get it."""
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]
    except ImportError:
        print(
            "export.tensorrt is set, but tensorrt is not installed here, so no engine was built: `pip install tensorrt` on a "
            "machine with the NVIDIA GPU that will run it, then `python -m tasks.export`. The ONNX files do not need it."
        )
        return
    for name in graphs:
        write_engine(tensorrt, output / "graphs" / f"{name}.onnx", graphs[name])


def write_engine(tensorrt: Any, path: Path, graph: Graph, *, largest_batch: int = 16) -> None:
    """Build path.engine from path.onnx for this machine's GPU, with axes that vary from 1 to `largest_batch`.

    Raises:
        SlipwayError: when TensorRT cannot parse or build the graph, in its own words.
    """
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        faults = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise SlipwayError(
            f"TensorRT cannot read {path.name}: {faults}. Set export.tensorrt to false to go on without an engine"
        )
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, example in graph.inputs.items():
        varying = graph.dynamic.get(name, {})
        low, high = (
            [limit if axis in varying else size for axis, size in enumerate(example.shape)] for limit in (1, largest_batch)
        )
        profile.set_shape(name, low, low, high)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise SlipwayError(
            f"TensorRT could not build an engine from {path.name}: see its messages above, or set export.tensorrt to false"
        )
    path.with_suffix(".engine").write_bytes(bytes(engine))


if __name__ == "__main__":
    stage_main(run)
