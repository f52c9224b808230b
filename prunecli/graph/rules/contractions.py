"""Products that sum over a dimension: convolutions, matrix products. The summed positions go together."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor

from prunecli.graph.call import Call, rule_for
from prunecli.graph.constraints import UNIFORM, Atoms, Label, Labels
from prunecli.graph.findings import Contraction, Flow
from prunecli.graph.structure import Role


@rule_for("mm")
def mm(call: Call) -> None:
    """[n, k] @ [k, m]."""
    _matrix_product(call, call.args[0], call.args[1], bias=None)


@rule_for("addmm")
def addmm(call: Call) -> None:
    """Bias + [n, k] @ [k, m]."""
    _matrix_product(call, call.args[1], call.args[2], bias=call.args[0])


@rule_for("bmm")
def bmm(call: Call) -> None:
    """[b, n, k] @ [b, k, m]."""
    _matrix_product(call, call.args[0], call.args[1], bias=None)


@rule_for("baddbmm")
def baddbmm(call: Call) -> None:
    """Bias + [b, n, k] @ [b, k, m]."""
    _matrix_product(call, call.args[1], call.args[2], bias=call.args[0])


@rule_for("mv", "dot")
def vector_product(call: Call) -> None:
    """[n, k] @ [k], or [k] @ [k]."""
    left, right = call.args[0], call.args[1]
    _tie_summed(call, call.labels(left)[-1], call.labels(right)[0])
    _mark(call, [(left, -1), (right, 0)])
    call.put(call.labels(left)[:-1], flow=_flow(call, left, right, None))


@rule_for("linear")
def linear(call: Call) -> None:
    """[..., k] @ [m, k]^T + bias."""
    data, weight = call.args[0], call.args[1]
    bias = call.argument("bias")
    summed = _tie_summed(call, call.labels(data)[-1], call.labels(weight)[1])
    out = call.labels(weight)[0]
    if bias is not None:
        out = call.tie([out, call.labels(bias)[0]])
    _mark(call, [(data, -1), (weight, 1)])
    _roles(call, data, weight, bias)
    labels = (*call.labels(data)[:-1], out)
    _cost(call, (*call.out.shape, data.shape[-1]), (*labels, summed))
    call.put(labels, flow=_flow(call, data, weight, bias))


@rule_for("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(call: Call) -> None:
    """Convolution and transposed convolution, in any number of spatial dimensions, with groups."""
    data, weight, bias = call.args[0], call.args[1], call.args[2]
    transposed, groups = call.argument("transposed", False), call.argument("groups", 1)
    batch, channels, *spatial = call.labels(data)
    for label in (*spatial, *call.labels(weight)[2:]):
        call.freeze(label, "is a kernel size or a place in the image", expected=True)
    channels, out = _grouped(call, channels, call.labels(weight), weight.shape, groups, transposed)
    if bias is not None:
        out = call.tie([out, call.labels(bias)[0]])
    in_dim = 0 if transposed else 1
    _mark(call, [(data, 1), (weight, in_dim)])
    _roles(call, data, weight, bias)
    steps = prod((data if transposed else call.out).shape[2:]) * data.shape[0]
    first, second = call.labels(weight)[:2]
    first = out if first is UNIFORM else first  # one filter, repeated
    _cost(call, (*weight.shape, steps), (first, second, *(None,) * (weight.dim() - 1)))
    labels: Labels = (batch, out, *(None,) * len(spatial))
    call.put(labels, flow=_flow(call, data, weight, bias))


def _grouped(
    call: Call, channels: Label, weight: Labels, shape: Sequence[int], groups: int, transposed: bool
) -> tuple[Label, Label]:
    """Tie the channels to the weight, through one axis of groups if there are several.

    Returns the labels of the input channels and of the output channels.
    """
    if groups == 1:
        first, second = weight[0], weight[1]
        if transposed:
            return _tie_summed(call, channels, first), second
        return _tie_summed(call, channels, second), first
    if transposed:
        channels = call.tie([channels, weight[0]])
    whole = channels if transposed else weight[0]
    if whole is UNIFORM and isinstance(channels, np.ndarray) and channels.size == groups == shape[0]:
        return channels, channels  # one filter for every channel, repeated
    if not isinstance(channels, np.ndarray) or not isinstance(whole, np.ndarray):
        for label in (channels, *weight[:2]):
            call.freeze(label, "belongs to a grouped convolution whose other side cannot be cut")
        return None, None
    axis, within = _split_into(call, channels, groups)
    if transposed:
        per_group = weight[1]
        if shape[1] == 1:
            out: Label = axis
        elif isinstance(per_group, np.ndarray):
            out = call.tracer.constraints.merge([axis, per_group]).reshape(-1)
        else:
            call.freeze(axis, "belongs to a grouped convolution whose output cannot be cut")
            return channels, None
        _note_channels(call, channels, out, axis)
        return channels, out
    if isinstance(weight[1], np.ndarray):
        call.tie([within, weight[1]])
    out_axis, _ = _split_into(call, whole, groups)
    call.tie([axis, out_axis])
    _note_channels(call, channels, whole, axis)
    return channels, whole


def _split_into(call: Call, channels: Atoms, groups: int) -> tuple[Atoms, Label]:
    """Return the labels of the groups that channels fall into, and of the places in a group."""
    if channels.size == groups:
        return channels, None  # a group of one channel is that channel
    axis, within = call.split(channels, (groups, channels.size // groups))
    return axis, within


def _tie_summed(call: Call, left: Label, right: Label) -> Label:
    """Tie the positions that are summed over. A constant, such as a first state, has the other's size."""
    summed = call.tie([left, right])
    if left is UNIFORM or right is UNIFORM:
        call.note_size(summed)
    return summed


def _note_channels(call: Call, channels: Atoms, out: Label, axis: Atoms) -> None:
    """Note what `in_channels`, `out_channels` and `groups` of the running module stand for."""
    if isinstance(out, np.ndarray):
        call.tracer.findings.channels[call.tracer.module] = (channels, out, axis)
    call.note_size(axis)


def _matrix_product(call: Call, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
    *batch_left, rows, summed_left = call.labels(left)
    *batch_right, summed_right, columns = call.labels(right)
    summed = _tie_summed(call, summed_left, summed_right)
    batch = [call.tie(pair) for pair in zip(batch_left, batch_right, strict=True)]
    _cost(call, (*left.shape, right.shape[-1]), (*batch, rows, summed, columns))
    if bias is not None:
        rows, columns = _with_bias(call, bias, rows, columns)
    _mark(call, [(left, -1), (right, -2)])
    data, weight = (left, right) if call.flow(left).from_data else (right, left)
    _roles(call, data, weight, bias)
    call.put([*batch, rows, columns], flow=_flow(call, left, right, bias))


def _with_bias(call: Call, bias: Tensor, rows: Label, columns: Label) -> tuple[Label, Label]:
    labels = call.labels(bias)
    if bias.dim() >= 1 and bias.shape[-1] == call.out.shape[-1]:
        columns = call.tie([columns, labels[-1]])
    if bias.dim() >= 2 and bias.shape[-2] == call.out.shape[-2]:
        rows = call.tie([rows, labels[-2]])
    return rows, columns


def _mark(call: Call, operands: Sequence[tuple[Tensor, int]]) -> None:
    """Note which dimensions of weights are summed over, and which hold what comes out."""
    for tensor, summed in operands:
        if call.flow(tensor).from_data:
            continue
        for dim, label in enumerate(call.labels(tensor)):
            if isinstance(label, np.ndarray):
                found = call.tracer.findings
                (found.consumed if dim == summed % tensor.dim() else found.produced).append(label)


def _roles(call: Call, data: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if call.flow(data).from_data and not call.flow(weight).from_data:
        call.set_role(weight, Role.WEIGHT)
    if bias is not None and not call.flow(bias).from_data:
        call.set_role(bias, Role.BIAS)


def _flow(call: Call, left: Tensor, right: Tensor, bias: Tensor | None) -> Flow:
    """A product with data reads its operands raw and opens a gate site of its parameters."""
    operands = [left, right] if bias is None else [left, right, bias]
    flows = [call.flow(operand) for operand in operands]
    from_data = any(flow.from_data for flow in flows)
    parameters = frozenset[str]().union(*(flow.parameters for flow in flows))
    if not from_data:
        return Flow(parameters=parameters)
    for flow in flows[:2]:
        call.tracer.read_raw(flow.open_sites)
    carried = flows[2].open_sites if bias is not None else frozenset[str]()
    return Flow(True, frozenset(), parameters | carried)


def _cost(call: Call, lengths: Sequence[int], labels: Sequence[Label]) -> None:
    coefficient, vectors = 1, []
    for length, label in zip(lengths, labels, strict=True):
        if isinstance(label, np.ndarray):
            vectors.append(label)
        else:
            coefficient *= length
    call.tracer.findings.contractions.append(
        Contraction(call.tracer.module, call.name, coefficient, tuple(vectors))
    )
