"""What the rules say, found sooner for the calls that deep networks are mostly made of.

Convolutions in one group or in one per channel, batch norms in eval mode, activations, sums, products and
means, on tensors without data that a trace has met. A shortcut notes exactly what the general way would
(`Tracer`, `Call` and the rule), in the same order; where anything is unusual it notes nothing and returns
None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from prunecli.graph.call import signature_of
from prunecli.graph.constraints import UNIFORM, Atoms, Label, Labels, Reason
from prunecli.graph.findings import Contraction, Flow, Tag
from prunecli.graph.structure import Role

if TYPE_CHECKING:
    from prunecli.graph.tracer import Seen, Tracer

Shortcut: TypeAlias = "Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any]], Any]"

_TIED: Final = "meets a dimension that cannot be cut"
_KERNEL: Final = "is a kernel size or a place in the image"
_NOTHING: Final = Flow()
_NONE: Final = frozenset[str]()
_ROLES_IN_NORM: Final = ((2, Role.STATISTIC), (3, Role.STATISTIC), (0, Role.SCALE), (1, Role.SHIFT))
"""Which of scale, shift, mean and variance are what, in the order in which the rule says so."""

aten = torch.ops.aten


def activation(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One tensor of data, element by element: the result is labelled like it."""
    data, *numbers = args
    seen = _data(tracer, data)
    if kwargs or seen is None or (seen.is_aliased and signature_of(func).is_in_place):
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    _note_operation(tracer, func, numbers)
    _put(tracer, out, seen.known)
    return out


def addition(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Two tensors of data, or one and a number: equal positions go together, and with what is the same."""
    if kwargs or len(args) != 2:
        return None
    if not isinstance(args[1], Tensor):
        return activation(tracer, func, args, kwargs) if type(args[1]) in (int, float) else None
    left, right = _data(tracer, args[0]), _data(tracer, args[1])
    if left is None or right is None or len(left.known.labels) != len(right.known.labels):
        return None
    if left.is_aliased and signature_of(func).is_in_place:
        return None
    if args[0].shape == args[1].shape:
        labels, pairs = left.known.labels, list(zip(left.known.labels, right.known.labels, strict=True))
    else:
        labels, pairs = _stretched(left.known.labels, right.known.labels, args[0].shape, args[1].shape)
    if not all(_is_alike(one, other) for one, other in pairs):
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    op = _note_operation(tracer, func, ())
    for one, other in pairs:
        _tie(tracer, op, one, other)
    sites = left.known.flow.open_sites | right.known.flow.open_sites
    _put(tracer, out, Tag(labels, Flow(True, frozenset(), sites)))
    return out


def _stretched(
    left: Labels, right: Labels, lengths: Sequence[int], others: Sequence[int]
) -> tuple[Labels, list[tuple[Label, Label]]]:
    """Return the labels where a dimension of length 1 is stretched to that of the other, and what meets."""
    labels, pairs = [], []
    for one, other, length, other_length in zip(left, right, lengths, others, strict=True):
        if length == other_length:
            pairs.append((one, other))
        labels.append(other if length == 1 else one)
    return tuple(labels), pairs


def mean(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Data averaged over some of its dimensions, which are gone or of length 1."""
    seen = _data(tracer, args[0])
    if kwargs or seen is None or not seen.known.labels or len(args) < 2 or not args[1]:
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    _note_operation(tracer, func, ())
    labels = seen.known.labels
    dims = [dim % len(labels) for dim in args[1]]
    tracer.constraints.statistics += _arrays(*(labels[dim] for dim in dims))
    keeps = out.dim() == len(labels)
    kept = (None if dim in dims else each for dim, each in enumerate(labels) if keeps or dim not in dims)
    _put(tracer, out, Tag(tuple(kept), seen.known.flow))
    return out


def batch_norm(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Data scaled per channel by statistics that are known: what belongs to a channel goes with it."""
    if kwargs or len(args) != 8 or args[5] is not False:
        return None
    seen = _data(tracer, args[0])
    owned = [each for each in (_parameter(tracer, given) for given in args[1:5]) if each is not None]
    if seen is None or len(owned) != 4 or any(len(each.known.labels) != 1 for each in owned):
        return None
    before = seen.known.labels
    labels = _arrays(*(each.known.labels[0] for each in owned))
    channel = before[1] if len(before) > 1 else None
    if not isinstance(channel, np.ndarray) or len(labels) != 4:
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    names = [each.name or "" for each in owned]
    _note_operation(tracer, func, args[6:], names)
    for label in labels:
        _tie(tracer, "native_batch_norm", channel, label)
    roles = tracer.findings.roles
    for place, role in _ROLES_IN_NORM:
        roles.setdefault(names[place], role)
    opened = owned[0].known.flow.parameters | owned[1].known.flow.parameters
    _put(tracer, out[0], Tag(before, Flow(True, _NONE, opened or seen.known.flow.open_sites)))
    per_channel = Tag((channel,), _NOTHING)
    for statistic in out[1:]:
        if statistic.shape == channel.shape:
            tracer.tag(statistic, per_channel)
    return out


def convolution(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Data contracted with a weight, in one group or in one per channel: what meets goes together."""
    if kwargs or len(args) != 9 or args[6]:
        return None
    seen, weight = _data(tracer, args[0]), _parameter(tracer, args[1])
    bias = None if args[2] is None else _parameter(tracer, args[2])
    if seen is None or weight is None or (bias is None and args[2] is not None):
        return None
    if min(len(seen.known.labels), len(weight.known.labels)) < 2:
        return None
    (batch, channels, *places), (first, second, *kernel) = seen.known.labels, weight.known.labels
    shift = first if bias is None else bias.known.labels[0]
    if not (isinstance(channels, np.ndarray) and isinstance(first, np.ndarray)):
        return None
    is_deep = args[8] > 1
    if not isinstance(shift, np.ndarray) or isinstance(second, np.ndarray) is is_deep:
        return None
    if is_deep and not args[8] == channels.size == first.size:
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    owned = [weight] if bias is None else [weight, bias]
    _note_operation(tracer, func, (), [each.name or "" for each in owned])
    for label in (*places, *kernel):
        if isinstance(label, np.ndarray):
            tracer.constraints.freeze(label, Reason(_KERNEL, tracer.modules[-1], "convolution", True))
    if is_deep:  # each channel has a filter of its own
        _tie(tracer, "convolution", channels, first)
        tracer.findings.channels[tracer.modules[-1]] = (channels, first, channels)
        tracer.findings.note_size(tracer.modules[-1], channels, given=True)
    else:
        _tie(tracer, "convolution", channels, second)
    _tie(tracer, "convolution", first, shift)
    for each, role in zip(owned, (Role.WEIGHT, Role.BIAS), strict=False):
        tracer.findings.roles.setdefault(each.name or "", role)
    _note_contraction(tracer, weight.known, prod(args[1].shape[2:]) * prod(out.shape[2:]) * out.shape[0])
    tracer.findings.gated |= seen.known.flow.open_sites
    opened = owned[0].known.flow.parameters | owned[-1].known.flow.parameters
    _put(tracer, out, Tag((batch, first, *(None,) * len(places)), Flow(True, _NONE, opened)))
    return out


def _note_contraction(tracer: Tracer, weight: Tag, coefficient: int) -> None:
    """Note what a convolution costs, and which dimension of its weight it sums over."""
    found = tracer.findings
    for dim, label in enumerate(weight.labels):
        if isinstance(label, np.ndarray):
            (found.consumed if dim == 1 else found.produced).append(label)
    labels = _arrays(*weight.labels[:2])
    found.contractions.append(Contraction(tracer.modules[-1], "convolution", coefficient, labels))


def nothing(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An empty tensor of no elements, which torch asks for beside every batch norm."""
    if list(args) != [[0]]:
        return None
    out = tracer.kernels.run(func, args, kwargs)
    tracer.tag(out, Tag((UNIFORM,), _NOTHING))
    return out


_LEAKY: Final = [
    each
    for each in (aten.leaky_relu.default, aten.leaky_relu_.default)
    if torch.Tag.pointwise in each.tags  # PyTorch 2.10 takes it apart
]

SHORTCUTS: Final[dict[Any, Shortcut]] = {
    aten.empty.memory_format: nothing,
    aten.convolution.default: convolution,
    aten.native_batch_norm.default: batch_norm,
    aten.mean.dim: mean,
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor), addition),
    **dict.fromkeys(
        (
            *(aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default),
            *(aten.hardswish.default, aten.hardswish_.default, aten.silu.default, aten.silu_.default),
            *(aten.hardsigmoid.default, aten.hardsigmoid_.default, aten.elu.default, aten.elu_.default),
            *(aten.sigmoid.default, aten.sigmoid_.default, aten.tanh.default, aten.gelu.default),
            *(aten.mish.default, *_LEAKY),
        ),
        activation,
    ),
}
"""Operation -> how to follow it sooner."""


def _data(tracer: Tracer, tensor: Any) -> Seen | None:
    """Return what is known of an activation; None if it is something else, or in an unusual state."""
    seen = tracer.seen(tensor)
    if seen is None or seen.name is not None or seen.tag is None or not tensor.is_meta:
        return None
    return seen if seen.tag.flow.from_data and seen.tag.picked_from is None else None


def _parameter(tracer: Tracer, tensor: Any) -> Seen | None:
    """Return what is known of a parameter or buffer of the model as it is."""
    seen = tracer.seen(tensor) if isinstance(tensor, Tensor) else None
    if seen is None or seen.name is None or seen.tag is None or not tensor.is_meta:
        return None
    flow = seen.tag.flow
    return None if flow.from_data or flow.open_sites or seen.tag.picked_from is not None else seen


def _run(tracer: Tracer, func: Any, args: tuple[Any, ...]) -> Any:
    """Return the results; None if the call fails, which the general way then reports."""
    try:
        return tracer.kernels.run(func, args, {})
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


def _note_operation(tracer: Tracer, func: Any, numbers: Sequence[Any], used: Sequence[str] = ()) -> str:
    """Note that an operation ran, with these numbers and parameters; return its name."""
    path = tracer.path
    if used:
        module, known = tracer.modules[-1], tracer.findings.used
        for name in used:
            known.setdefault(name, module)
    if numbers:
        path.scalars += [float(each) for each in numbers if isinstance(each, (int, float))]
    op = signature_of(func).name
    path.operations.append(op)
    return op


def _is_alike(left: Label, right: Label) -> bool:
    """Return whether both are atoms, or the same: nothing has to be frozen where they meet."""
    return left is right or (isinstance(left, np.ndarray) and isinstance(right, np.ndarray))


def _tie(tracer: Tracer, op: str, left: Label, right: Label) -> None:
    if left is right or not (isinstance(left, np.ndarray) and isinstance(right, np.ndarray)):
        return
    if not tracer.constraints.tie_runs(left, right):
        tracer.constraints.tie(left, right, Reason(_TIED, tracer.modules[-1], op))


def _arrays(*labels: Label) -> tuple[Atoms, ...]:
    return tuple(label for label in labels if isinstance(label, np.ndarray))


def _put(tracer: Tracer, tensor: Tensor, tag: Tag) -> None:
    tracer.tag(tensor, tag)
    for label in tag.labels:
        if isinstance(label, np.ndarray):
            tracer.findings.note_size(tracer.modules[-1], label, given=False)
