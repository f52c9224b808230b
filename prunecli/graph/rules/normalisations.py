"""Normalisations: their parameters go with the channels; statistics over channels change when channels go."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prunecli.graph.call import Call, rule_for
from prunecli.graph.constraints import Label
from prunecli.graph.findings import Flow
from prunecli.graph.structure import Role


@rule_for(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update",
    "_batch_norm_no_update", "_batch_norm_impl_index",
)  # fmt: skip
def batch_norm(call: Call) -> None:
    """Scale each channel (dimension 1) by its own statistics."""
    data, scale, shift = call.args[0], call.args[1], call.args[2]
    statistics = [t for t in call.args[3:5] if isinstance(t, Tensor)]
    labels = list(call.labels(data))
    owned = [t for t in (scale, shift) if t is not None]
    labels[1] = call.tie([labels[1], *(call.labels(t)[0] for t in (*owned, *statistics))])
    if call.argument("training", False):
        averaged = [label for label in (labels[0], *labels[2:]) if isinstance(label, np.ndarray)]
        call.tracer.constraints.statistics.extend(averaged)
    for tensor in statistics:
        call.set_role(tensor, Role.STATISTIC)
    _finish(call, data, scale, shift, labels, channel=labels[1])


@rule_for("native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> None:
    """Scale the last dimensions by statistics over them."""
    data, normalized_shape, scale = call.args[0], call.args[1], call.args[2]
    shift = call.args[3] if call.name == "native_layer_norm" else None
    labels = list(call.labels(data))
    first = data.dim() - len(normalized_shape)
    for dim in range(first, data.dim()):
        owned = [call.labels(t)[dim - first] for t in (scale, shift) if t is not None]
        labels[dim] = call.tie([labels[dim], *owned])
        label = labels[dim]
        if isinstance(label, np.ndarray):
            call.tracer.constraints.statistics.append(label)
            call.note_size(label)
    _finish(call, data, scale, shift, labels, channel=None)


@rule_for("native_group_norm")
def group_norm(call: Call) -> None:
    """Scale runs of channels by statistics over each run and the image."""
    data, scale, shift = call.args[0], call.args[1], call.args[2]
    groups = call.argument("group")
    labels = list(call.labels(data))
    owned = [call.labels(t)[0] for t in (scale, shift) if t is not None]
    labels[1] = call.tie([labels[1], *owned])
    for label in labels[2:]:
        call.freeze(label, "is averaged over in a group norm")
    runs: Label = None
    if isinstance(labels[1], np.ndarray):
        parts = call.split(labels[1], (groups, labels[1].size // groups)) if groups > 1 else [labels[1]]
        call.tracer.constraints.statistics.append(parts[-1])
        if groups > 1:
            runs = parts[0]
            call.note_size(runs)
    _finish(call, data, scale, shift, labels, channel=None)
    for statistic in call.results()[1:]:
        call.put([None, runs], flow=Flow(), tensor=statistic)


@rule_for("_weight_norm_interface")
def weight_norm(call: Call) -> None:
    """A weight as direction times length; the length runs over all dimensions but one."""
    direction, length = call.args[0], call.args[1]
    kept = call.argument("dim", 0)
    labels = list(call.labels(direction))
    labels[kept] = call.tie([labels[kept], call.labels(length)[kept]])
    call.tracer.constraints.statistics.extend(
        label for dim, label in enumerate(labels) if dim != kept and isinstance(label, np.ndarray)
    )
    weight, norm = call.out
    call.put(labels, tensor=weight)
    call.put(call.labels(length), tensor=norm)


def _finish(
    call: Call, data: Tensor, scale: Tensor | None, shift: Tensor | None, labels: list[Label], channel: Label
) -> None:
    """Label the results. An affine normalisation closes the gate sites before it and opens its own."""
    call.set_role(scale, Role.SCALE)
    call.set_role(shift, Role.SHIFT)
    flow = call.flow(data)
    parameters = frozenset[str]().union(*(call.flow(t).parameters for t in (scale, shift) if t is not None))
    if flow.from_data:
        flow = Flow(True, frozenset(), parameters or flow.open_sites)
    result, *others = call.results()
    call.put(labels, flow=flow, tensor=result)
    for other in others:
        call.put(_labels_of_statistic(other, data, labels, channel), flow=Flow(), tensor=other)


def _labels_of_statistic(other: Tensor, data: Tensor, labels: list[Label], channel: Label) -> list[Label]:
    """Return the labels of a mean or variance: per channel, or of the dimensions that were not averaged."""
    if other.dim() == 1 and other.numel() == data.shape[1]:
        return [channel]
    if other.dim() == data.dim():
        pairs = zip(labels, other.shape, data.shape, strict=True)
        return [label if length == whole else None for label, length, whole in pairs]
    return [None] * other.dim()
