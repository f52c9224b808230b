"""An ONNX graph -> its parameters and multiply-accumulates per layer, for one sample. Nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from math import prod

import onnx

from prunecli.report import LayerFacts, ModelFacts

_PARAMETER = frozenset({
    "weight", "bias", "weight_bias", "gamma", "beta", "running_mean", "running_var", "in_proj_weight",
    "in_proj_bias",
})  # fmt: skip
"""How the names of parameters end; what stands before is the layer."""
_INDICES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
"""Constants that are no parameters: shapes, places."""
_FACTORS: Mapping[str, tuple[int, int]] = {
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
}
"""Operators that multiply and add as is known, and which of their inputs they multiply."""
_UNKNOWN = frozenset({"Einsum", "Attention", "LSTM", "GRU", "RNN", "DeformConv", "DFT", "STFT"})
"""Operators that multiply and add, but are not counted here."""
_SCALES: Mapping[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
}
"""Inputs that say how numbers are written: scales and zero points, which are no parameters."""
_WHOLE = {"DequantizeLinear": 0, "QLinearConv": 8}
"""Inputs that are parameters even where they are whole numbers."""
_PASSES = frozenset(
    {"Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "QuantizeLinear", "DequantizeLinear"}
)
"""Operators that only rewrite a parameter."""
_STANDARD = ("", "ai.onnx")

Sizes = Mapping[str, Sequence[int]]
"""The shape of each input, by its name."""


@dataclass
class _Layer:
    """What is known of a layer so far."""

    kind: str
    units: int | None = None
    params: int = 0
    macs: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True)
class _Values:
    """What is known of the values of a graph."""

    shapes: Mapping[str, tuple[int, ...]]
    item_bytes: Mapping[str, int]
    owners: dict[str, str] = field(default_factory=dict)
    """The layers of parameters, and of what is only made of them."""

    def of(self, name: str) -> tuple[int, ...] | None:
        """Return a shape, where it is known."""
        return self.shapes.get(name)


def graph_facts(proto: onnx.ModelProto, sizes: Sizes | None = None) -> ModelFacts:
    """Count parameters and multiply-accumulates of one sample, layer by layer.

    A layer is named after its parameter, as `conv1` of `conv1.weight`. Normalisations that the exporter
    folded into convolutions are gone. Operators that may multiply but cannot be counted are listed.

    Args:
        proto: The file.
        sizes: What its inputs measure where the file leaves that open; the first size is the batch.
    """
    weights = _weights(proto.graph)
    values = _inferred(proto, sizes or {}, weights)
    batch = _batch_size(proto.graph)
    values.owners.update(_owners(proto.graph, weights))
    functions = {(each.domain, each.name) for each in proto.functions}
    unknown: Counter[str] = Counter()
    layers: dict[str, _Layer] = {}
    for node in proto.graph.node:
        own = [values.owners[name] for name in node.input if name in values.owners]
        macs = None if _is_unknown(node, functions) else _macs(node, values)
        if macs is None:
            unknown[node.op_type] += 1
        if (own and node.output[0] not in values.owners) or macs:
            layer = layers.setdefault(own[0] if own else node.name or node.output[0], _Layer(node.op_type))
            _book(layer, node, (macs or 0) // batch, values, batch)
    for name, item in weights.items():
        layers.setdefault(values.owners[name], _Layer("Constant")).params += prod(item.dims)
    return ModelFacts(
        layers=tuple(
            LayerFacts(name, one.kind, one.units, one.params, one.macs, one.activation_bytes)
            for name, one in layers.items()
        ),
        parameter_bytes=sum(map(_bytes, weights.values())),
        not_counted=tuple(f"{op} ({times} times)" if times > 1 else op for op, times in unknown.items()),
    )


def _book(layer: _Layer, node: onnx.NodeProto, macs: int, values: _Values, batch: int) -> None:
    """Add what an operator costs to its layer."""
    made = values.of(node.output[0])
    if macs:
        layer.kind, layer.macs = node.op_type, layer.macs + macs
        layer.units = _units(node, made)
    if made is not None and (macs or not layer.macs):  # what only adds a bias makes nothing new
        layer.activation_bytes += values.item_bytes.get(node.output[0], 4) * prod(made) // batch


def _weights(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the parameters, those of branches and loops too: initializers, and constants with dimensions."""
    found: dict[str, onnx.TensorProto] = {}
    for each in (graph, *inner_graphs(graph)):
        whole = {
            node.input[_WHOLE[node.op_type]]
            for node in each.node
            if node.op_type in _WHOLE and len(node.input) > _WHOLE[node.op_type]
        }
        scales = {
            name
            for node in each.node
            for place, name in enumerate(node.input)
            if place in _SCALES.get(node.op_type, ())
        }
        for name, item in _constants(each):
            if name not in scales and (item.data_type not in _INDICES or name in whole):
                found.setdefault(name, item)
    return found


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield from ((item.name, item) for item in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.dims:
                    yield node.output[0], attribute.t


def inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside its operators, and those inside of these."""
    for node in graph.node:
        for each in _bodies(node):
            yield each
            yield from inner_graphs(each)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def unfolded(proto: onnx.ModelProto, most: int) -> int:
    """Return how many operators its functions stand for, at most one more than `most`.

    Raises:
        ValueError: They call themselves.
    """
    bodies = {(each.domain, each.name): _calls(each.node) for each in proto.functions}
    inside = {name: [other for other in calls if other in bodies] for name, calls in bodies.items()}
    sizes: dict[tuple[str, str], int] = {}
    try:
        for name in TopologicalSorter(inside).static_order():
            found = sum(times * sizes.get(other, 1) for other, times in bodies[name].items())
            sizes[name] = min(found, most + 1)
    except CycleError:
        raise ValueError("its functions call themselves") from None
    called = _calls(proto.graph.node)
    return min(sum(times * sizes[name] for name, times in called.items() if name in sizes), most + 1)


def _calls(nodes: Iterable[onnx.NodeProto]) -> Counter[tuple[str, str]]:
    """Count operators by domain and name, those of inner graphs too."""
    called: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        called[(node.domain, node.op_type)] += 1
        for body in _bodies(node):
            called += _calls(body.node)
    return called


def _owners(graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto]) -> dict[str, str]:
    """Return the layer of each parameter, and of each value that is only a parameter written otherwise.

    A matrix product whose weight has no telling name is of the layer whose bias is added to it.
    """
    owners = {name: _owner(name) for name in weights}
    for node in graph.node:
        if node.op_type in _PASSES and node.input and node.input[0] in owners:
            source, out = node.input[0], node.output[0]
            owners[out] = owners[source] if _owner(out) == out else _owner(out)
            if owners[source] == source:
                owners[source] = owners[out]
    made_by = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        product = next((made_by[name] for name in node.input if name in made_by), None)
        bias = [owners[name] for name in node.input if name in owners and owners[name] != name]
        if node.op_type == "Add" and product is not None and bias:
            for name in product.input:
                if owners.get(name) == name:
                    owners[name] = bias[0]
    return owners


def _owner(name: str) -> str:
    """Return the layer of a parameter, or the whole name where it does not tell.

    >>> _owner("layer1.0.conv1.weight_bias"), _owner("val_12")
    ('layer1.0.conv1', 'val_12')
    """
    head, _, last = name.rpartition(".")
    return head if head and last in _PARAMETER else name


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are no parameters; old files list those as well."""
    initial = {item.name for item in graph.initializer}
    return [value for value in graph.input if value.name not in initial]


def _batch_size(graph: onnx.GraphProto) -> int:
    """Return how many samples the file takes at a time; 1 where it takes any number."""
    first = next(iter(inputs_of(graph)), None)
    sizes = first.type.tensor_type.shape.dim if first is not None else []
    return max(1, sizes[0].dim_value) if len(sizes) > 1 else 1


def _inferred(proto: onnx.ModelProto, sizes: Sizes, weights: Mapping[str, onnx.TensorProto]) -> _Values:
    """Work out the shapes of values, for the batch size that the file fixes, or else for one sample."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    if any(_is_open(value) for value in inputs_of(fixed.graph)):  # else what the file says of values is true
        for value in inputs_of(fixed.graph):
            _settle(value.type.tensor_type.shape, sizes.get(value.name, ()))
        del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        graph = fixed.graph
    shapes = {name: tuple(item.dims) for name, item in (*_constants(proto.graph), *weights.items())}
    item_bytes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        item_bytes[value.name] = _item_bytes(tensor.elem_type)
        if tensor.HasField("shape") and all(
            each.HasField("dim_value") and each.dim_value >= 0 for each in tensor.shape.dim
        ):
            shapes.setdefault(value.name, tuple(each.dim_value for each in tensor.shape.dim))
    return _Values(shapes, item_bytes)


def _is_open(value: onnx.ValueInfoProto) -> bool:
    return any(dimension.dim_value <= 0 for dimension in value.type.tensor_type.shape.dim)


def _settle(shape: onnx.TensorShapeProto, sizes: Sequence[int]) -> None:
    """Fill in what a shape leaves open: a batch of one, and the sizes of a sample where they are known."""
    for place, dimension in enumerate(shape.dim):
        if dimension.dim_value > 0:
            continue
        if place == 0:
            dimension.dim_value = 1
        elif len(sizes) == len(shape.dim):
            dimension.dim_value = sizes[place]
        else:
            dimension.ClearField("dim_value")


def _is_unknown(node: onnx.NodeProto, functions: set[tuple[str, str]]) -> bool:
    """Whether an operator may multiply in a way that nobody knows: its own kind, or what runs inside."""
    inside = [each for body in _bodies(node) for graph in (body, *inner_graphs(body)) for each in graph.node]
    return any(each.op_type in _FACTORS for each in inside) or any(
        each.op_type in _UNKNOWN or each.domain not in _STANDARD or (each.domain, each.op_type) in functions
        for each in (node, *inside)
    )


def _macs(node: onnx.NodeProto, values: _Values) -> int | None:
    """Return what an operator multiplies and adds, for the whole batch; None where sizes are not known."""
    if node.op_type not in _FACTORS:
        return 0
    places = _FACTORS[node.op_type]
    if len(node.input) <= max(places):
        return None
    first, second = (values.of(node.input[place]) for place in places)
    made = values.of(node.output[0])
    if not first or not second or made is None or (node.op_type == "Gemm" and len(first) != 2):
        return None
    match node.op_type:
        case "Conv" | "ConvInteger" | "QLinearConv":
            return prod(made) * prod(second[1:])
        case "ConvTranspose":
            return prod(first) * prod(second[1:])
        case "Gemm":
            return prod(made) * first[0 if _attribute(node, "transA") else 1]
        case _:
            return prod(made) * first[-1]


def _units(node: onnx.NodeProto, made: tuple[int, ...] | None) -> int | None:
    """Return how many units a layer puts out."""
    if not made:
        return None
    return made[1] if "Conv" in node.op_type and len(made) > 1 else made[-1]


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((each.i for each in node.attribute if each.name == name), 0)


def _bytes(item: onnx.TensorProto) -> int:
    return len(item.raw_data) or prod(item.dims) * _item_bytes(item.data_type)


def _item_bytes(data_type: int) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    except (KeyError, ValueError):
        return 1
