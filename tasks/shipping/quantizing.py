"""The recipes of quantization: how one ONNX file becomes a smaller one. Whether it is good enough is not decided here."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.workload import Arrays
from tasks.shipping.storing import data_of, write_model

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LINEAR = ("Gemm", "MatMul")
# Weights have 7 bits of their byte. Processors without VNNI add pairs of products in 16 bits, where those of 8 bits overflow: a model
# that was good enough here would not be on somebody's laptop. Source: ONNX Runtime's documentation of quantization, "reduce_range".
REDUCE_RANGE = True
RESHAPING = ("Transpose", "Reshape", "Split", "Squeeze", "Unsqueeze", "Slice", "Identity")


@dataclass(frozen=True)
class Anatomy:
    """The parts of a graph that are left in float, by node name: what is `behind` the last layers, those `last` layers,
    and the `first` ones."""

    behind: tuple[str, ...]
    last: tuple[str, ...]
    first: tuple[str, ...]


def anatomy(model: onnx.ModelProto) -> Anatomy:
    """Find them by structure, as node names and scopes do not survive optimisation: back from the outputs to the last layers
    with weights, forward from the inputs to the first. Computing of shapes leads back into the network and is not followed."""
    structure = Structure(model)
    behind: dict[str, None] = {}
    last: dict[str, None] = {}
    waiting = [output.name for output in model.graph.output]
    while waiting:
        node = structure.producers.get(waiting.pop())
        if node is None or node.op_type == "Shape" or node.name in behind or node.name in last:
            continue
        if structure.is_layer(node):
            last[node.name] = None
        else:
            behind[node.name] = None
            waiting.extend(node.input)
    return Anatomy(tuple(behind), tuple(last), structure.first())


class Structure:
    """A graph's nodes by what they make and use."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.constants = {one.name for one in model.graph.initializer}
        self.constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
        self.inputs = [one.name for one in model.graph.input if one.name not in self.constants]

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node holds weights that were learnt. A convolution over a softmax is none: it takes a mean, as the head
        of a detector does over the bins of its box distances."""
        return (
            node.op_type in WEIGHTED
            and any(name in self.constants for name in node.input[1:2])
            and not self.after_softmax(node)
        )

    def after_softmax(self, node: onnx.NodeProto) -> bool:
        before = self.producers.get(node.input[0])
        while before is not None and before.op_type in RESHAPING:
            before = self.producers.get(before.input[0])
        return before is not None and before.op_type == "Softmax"

    def first(self) -> tuple[str, ...]:
        """The layers that the inputs reach through no other layer."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        waiting = list(self.inputs)
        while waiting:
            name = waiting.pop()
            for node in self.consumers.get(name, []) if name not in seen else []:
                if self.is_layer(node):
                    found[node.name] = None
                elif node.op_type != "Shape":
                    waiting.extend(node.output)
            seen.add(name)
        return tuple(found)


def static_int8(source: Path, target: Path, samples: Iterator[Arrays], *, keep: Sequence[str] = ("behind",)) -> None:
    """Write `target`: int8 weights per channel, uint8 activations with ranges (min-max) seen on `samples`, one at a time.

    `keep` names the parts of the anatomy left in float. Signed activations, or weights per tensor, are slower than fp32 on
    x86; everything quantized costs 8 points of mask mAP50 of a detector.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with quiet_quantizer(), tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(source, Path(scratch) / "prepared.onnx")
        parts = anatomy(onnx.load(prepared, load_external_data=False))
        quantized = Path(scratch) / "quantized.onnx"
        quantize_static(
            prepared,
            quantized,
            reader(samples),
            use_external_data_format=True,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=REDUCE_RANGE,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[name for part in keep for name in getattr(parts, part)],
        )
        write_model(onnx.load(quantized), target)


def dynamic_int8(source: Path, target: Path) -> None:
    """Write `target`: int8 weights, activations quantized as they come; for graphs of matrix products.

    They are scaled over the whole batch, so `serving.runtime` computes its rows one after another.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet_quantizer(), tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(source, Path(scratch) / "prepared.onnx")
        model = onnx.load(prepared, load_external_data=False)
        # The quantizer turns Gemm into MatMul with the weights transposed, and would stumble over the shapes of before.
        del model.graph.value_info[:]
        onnx.save(model, prepared)
        quantized = Path(scratch) / "quantized.onnx"
        quantize_dynamic(
            prepared,
            quantized,
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=True,
            reduce_range=REDUCE_RANGE,
        )
        write_model(onnx.load(quantized), target)


def weight_only_int4(source: Path, target: Path) -> None:
    """Write `target`: the weights of linear layers in 4 bits, blocks of 32 with a scale each; activations stay float."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source)
    as_matrix_products(model)
    with quiet_quantizer():
        quantizer: Any = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4)
        quantizer.process()
        quantizer.model.topological_sort()
        write_model(quantizer.model.model, target)


def as_matrix_products(model: onnx.ModelProto) -> None:
    """Write every linear layer as a MatMul with a constant of [in, out] and an Add for its bias: the one form whose weights are
    put into 4 bits. Exporters also write Gemm (GPT-2's layers) and, where the output layer is the table of words, a MatMul
    with the table turned. ONNX Runtime's own replacement of Gemm turns the weight for all who use it, such a table included.
    """
    from onnx.helper import get_attribute_value, make_node

    structure, graph = Structure(model), model.graph
    matrices = Matrices(model, structure)
    nodes = []
    for node in graph.node:
        told = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
        plain = not told.get("transA") and told.get("alpha", 1) == 1 and told.get("beta", 1) == 1
        weight = matrices.named(node.input[1], turned=bool(told.get("transB"))) if node.op_type in LINEAR and plain else None
        if weight is None:
            nodes.append(node)
            continue
        bias, made = list(node.input[2:]), node.output[0]
        product = f"{made}_product" if bias else made
        nodes.append(make_node("MatMul", [node.input[0], weight], [product], name=f"{node.name or made}_product"))
        if bias:
            nodes.append(make_node("Add", [product, *bias], [made], name=f"{node.name or made}_bias"))
    used = {name for node in nodes for name in node.input} | {one.name for one in graph.output}
    kept = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in used]
    used = {name for node in kept for name in node.input} | {one.name for one in graph.output}
    del graph.node[:]
    graph.node.extend(kept)
    for index in reversed(range(len(graph.initializer))):  # in their place: a copy of all would double the memory
        if graph.initializer[index].name not in used:
            del graph.initializer[index]


class Matrices:
    """The constant matrices of a graph, turned where that is asked for: a turned one becomes a constant of its own."""

    def __init__(self, model: onnx.ModelProto, structure: Structure) -> None:
        self._graph, self._producers = model.graph, structure.producers
        self._constants = {one.name: one for one in model.graph.initializer if len(one.dims) == 2}

    def named(self, name: str, *, turned: bool) -> str | None:
        """The constant that the input `name` is, or that it is when turned; None where it is none."""
        from onnx.numpy_helper import from_array, to_array

        maker = self._producers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            name, turned = maker.input[0], not turned
        if name not in self._constants:
            return None
        if not turned:
            return name
        other = f"{name}_turned"
        if other not in self._constants:
            self._constants[other] = from_array(to_array(self._constants[name]).T.copy(), other)
            self._graph.initializer.append(self._constants[other])
        return other


def prepare(source: Path, target: Path) -> Path:
    """A copy with constants folded, shapes inferred and every node named, as the quantizer wants it, its weights beside it.

    Symbolic shape inference is left out: it does not finish on graphs with a dynamic batch.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(
        str(source),
        str(target),
        skip_symbolic_shape=True,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        external_data_location=data_of(target).name,
    )
    model = onnx.load(target, load_external_data=False)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    onnx.save(model, target)
    return target


def reader(samples: Iterator[Arrays]) -> Any:
    """Samples as onnxruntime's calibration asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Samples(CalibrationDataReader):
        def get_next(self) -> Arrays | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(samples, None)

    return Samples()


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """onnxruntime's quantizer logs to the root logger, advice included that was followed already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
