"""What the rules say, found sooner for the calls that deep networks are mostly made of.

Convolutions without groups, batch norms in eval mode, activations and sums of equal shapes, on tensors
without data that a trace has met. A shortcut notes exactly what the general way would (`Tracer`, `Call`
and the rule), in the same order; where anything is unusual it notes nothing and returns None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from prunecli.graph.call import signature_of
from prunecli.graph.constraints import UNIFORM, Atoms, Label, Reason
from prunecli.graph.findings import Contraction, Flow, Tag
from prunecli.graph.structure import Role

if TYPE_CHECKING:
    from prunecli.graph.tracer import Seen, Tracer

Shortcut: TypeAlias = "Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any]], Any]"

_TIED: Final = "meets a dimension that cannot be cut"
_KERNEL: Final = "is a kernel size or a place in the image"
_NOTHING: Final = Flow()

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
    """Two tensors of data of one shape: equal positions go together."""
    if kwargs or len(args) != 2 or not isinstance(args[1], Tensor):
        return None
    left, right = _data(tracer, args[0]), _data(tracer, args[1])
    if left is None or right is None or args[0].shape != args[1].shape:
        return None
    if left.is_aliased and signature_of(func).is_in_place:
        return None
    pairs = list(zip(left.known.labels, right.known.labels, strict=True))
    if not all(_is_alike(one, other) for one, other in pairs):
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    _note_operation(tracer, func, ())
    for one, other in pairs:
        _tie(tracer, "add", one, other)
    sites = left.known.flow.open_sites | right.known.flow.open_sites
    _put(tracer, out, Tag(left.known.labels, Flow(True, frozenset(), sites)))
    return out


def batch_norm(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Data scaled per channel by statistics that are known: what belongs to a channel goes with it."""
    if kwargs or len(args) != 8 or args[5] is not False:
        return None
    seen = _data(tracer, args[0])
    owned = [_parameter(tracer, each) for each in args[1:5]]
    if seen is None or any(each is None or len(each.known.labels) != 1 for each in owned):
        return None
    before = seen.known.labels
    if len(before) < 2:
        return None
    channel, *labels = [before[1], *(each.known.labels[0] for each in owned if each is not None)]
    if not isinstance(channel, np.ndarray) or not all(isinstance(each, np.ndarray) for each in labels):
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    names = [each.name for each in owned if each is not None and each.name is not None]
    _note_operation(tracer, func, args[6:], names)
    for label in labels:
        _tie(tracer, "native_batch_norm", channel, label)
    roles = (Role.STATISTIC, Role.STATISTIC, Role.SCALE, Role.SHIFT)
    for name, role in zip((*names[2:], *names[:2]), roles, strict=True):
        tracer.findings.roles.setdefault(name, role)
    opened = frozenset[str]().union(*(each.known.flow.parameters for each in owned[:2] if each is not None))
    _put(tracer, out[0], Tag(before, Flow(True, frozenset(), opened or seen.known.flow.open_sites)))
    for statistic in out[1:]:
        if statistic.dim() == 1 and len(statistic) == len(channel):
            _put(tracer, statistic, Tag((channel,), _NOTHING))
    return out


def convolution(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Data contracted with a weight in one group: the summed channels go together."""
    if kwargs or len(args) != 9 or args[6] or args[8] != 1:
        return None
    seen, weight = _data(tracer, args[0]), _parameter(tracer, args[1])
    bias = None if args[2] is None else _parameter(tracer, args[2])
    if seen is None or weight is None or (bias is None and args[2] is not None):
        return None
    if min(len(seen.known.labels), len(weight.known.labels)) < 2:
        return None
    (batch, channels, *places), (first, second, *kernel) = seen.known.labels, weight.known.labels
    shift = first if bias is None else bias.known.labels[0]
    if not all(isinstance(each, np.ndarray) for each in (channels, first, second, shift)):
        return None
    out = _run(tracer, func, args)
    if out is None:
        return None
    owned = [weight] if bias is None else [weight, bias]
    _note_operation(tracer, func, (), [each.name for each in owned if each.name is not None])
    for label in (*places, *kernel):
        if isinstance(label, np.ndarray):
            tracer.constraints.freeze(label, Reason(_KERNEL, tracer.modules[-1], "convolution", True))
    _tie(tracer, "convolution", channels, second)
    _tie(tracer, "convolution", first, shift)
    for each, role in zip(owned, (Role.WEIGHT, Role.BIAS), strict=False):
        tracer.findings.roles.setdefault(each.name or "", role)
    _note_contraction(tracer, weight.known, prod(args[1].shape[2:]) * prod(out.shape[2:]) * out.shape[0])
    tracer.read_raw(seen.known.flow.open_sites)
    opened = frozenset[str]().union(*(each.known.flow.parameters for each in owned))
    _put(tracer, out, Tag((batch, first, *(None,) * len(places)), Flow(True, frozenset(), opened)))
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


SHORTCUTS: Final[dict[Any, Shortcut]] = {
    aten.empty.memory_format: nothing,
    aten.convolution.default: convolution,
    aten.native_batch_norm.default: batch_norm,
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor), addition),
    **dict.fromkeys(
        (
            *(aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default),
            *(aten.hardswish.default, aten.hardswish_.default, aten.silu.default, aten.silu_.default),
            *(aten.sigmoid.default, aten.sigmoid_.default, aten.gelu.default),
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


def _note_operation(tracer: Tracer, func: Any, numbers: Sequence[Any], used: Sequence[str] = ()) -> None:
    module, path = tracer.modules[-1], tracer.path
    for name in used:
        tracer.findings.used.setdefault(name, module)
    path.scalars += [float(each) for each in numbers if isinstance(each, (int, float))]
    path.operations.append(signature_of(func).name)


def _is_alike(left: Label, right: Label) -> bool:
    """Return whether both are atoms, or the same: nothing has to be frozen where they meet."""
    return left is right or (isinstance(left, np.ndarray) and isinstance(right, np.ndarray))


def _tie(tracer: Tracer, op: str, left: Label, right: Label) -> None:
    if left is not right and isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        tracer.constraints.tie(left, right, Reason(_TIED, tracer.modules[-1], op))


def _arrays(*labels: Label) -> tuple[Atoms, ...]:
    return tuple(label for label in labels if isinstance(label, np.ndarray))


def _put(tracer: Tracer, tensor: Tensor, tag: Tag) -> None:
    tracer.tag(tensor, tag)
    for label in tag.labels:
        if isinstance(label, np.ndarray):
            tracer.findings.note_size(tracer.modules[-1], label, given=False)
