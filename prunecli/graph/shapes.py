"""Shapes of results, by formula, for the operations that networks are mostly made of.

A formula is given the arguments of a call and returns one shape per result; None where the operands do not
fit together in the way that it knows. `kernels.py` believes it for a kind of call once it has been right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Sequence[Shape]


@dataclass(frozen=True)
class Formula:
    """How to find the shapes of results, and which arguments (by place) only shapes depend on."""

    shapes: Callable[..., Shapes | None]
    free: frozenset[int] = frozenset()


def formula_of(func: Any) -> Formula | None:
    """Return the formula for an operation, if there is one."""
    packet = func.overloadpacket.__name__
    if packet in _FORMULAS:
        return _FORMULAS[packet]
    is_pointwise = torch.Tag.pointwise in func.tags or packet.rstrip("_") in _POINTWISE
    return _BROADCAST if is_pointwise else None


def _broadcast(*args: Any) -> Shapes | None:
    """Element by element: lengths are equal, or one."""
    shapes = [arg.shape for arg in args if isinstance(arg, Tensor)]
    if not shapes or any(type(arg) in (list, tuple) for arg in args):
        return None
    first, *others = shapes
    if all(shape == first for shape in others):
        return [first]
    found: list[int] = []
    for lengths in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        longest = max(lengths)
        if any(length not in (1, longest) for length in lengths):
            return None
        found.append(longest)
    return [tuple(reversed(found))]


def _like_first(data: Tensor, *_: Any) -> Shapes:
    return [data.shape]


def _convolution(
    data: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, _: Sequence[int], groups: int,
) -> Shapes | None:  # fmt: skip
    dims = data.dim() - 2
    if transposed or dims < 1 or weight.dim() != data.dim():
        return None
    if not len(stride) == len(padding) == len(dilation) == dims:
        return None
    batch, channels, *image = data.shape
    filters, depth, *kernel = weight.shape
    if channels != depth * groups or filters % groups or (bias is not None and bias.shape != (filters,)):
        return None
    places = [
        (length + 2 * pad - reach * (size - 1) - 1) // step + 1
        for length, size, step, pad, reach in zip(image, kernel, stride, padding, dilation, strict=True)
    ]
    return [(batch, filters, *places)] if min(places) > 0 else None


def _batch_norm(data: Tensor, *others: Any) -> Shapes | None:
    channels = data.shape[1:2]
    if not channels or any(each is not None and each.shape != channels for each in others[:4]):
        return None
    return [data.shape, channels, channels]


def _layer_norm(
    data: Tensor, normalized: Sequence[int], scale: Tensor | None, shift: Tensor | None, _: float
) -> Shapes | None:
    count = len(normalized)
    last = tuple(data.shape[data.dim() - count :])
    if tuple(normalized) != last or any(each is not None and each.shape != last for each in (scale, shift)):
        return None
    statistics = (*data.shape[: data.dim() - count], *(1,) * count)
    return [data.shape, statistics, statistics]


def _mm(left: Tensor, right: Tensor) -> Shapes | None:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        return None
    return [(left.shape[0], right.shape[1])]


def _addmm(bias: Tensor, left: Tensor, right: Tensor) -> Shapes | None:
    found = _mm(left, right)
    return found if found is not None and bias.shape == found[0][1:] else None


def _bmm(left: Tensor, right: Tensor) -> Shapes | None:
    if left.dim() != 3 or right.dim() != 3 or left.shape[0] != right.shape[0]:
        return None
    return [(left.shape[0], left.shape[1], right.shape[2])] if left.shape[2] == right.shape[1] else None


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Shapes | None:
    first, *others = (list(tensor.shape) for tensor in tensors)
    if any(len(each) != len(first) for each in others) or not -len(first) <= dim < len(first):
        return None
    length = first[dim]
    for each in others:
        length += each[dim]
        each[dim] = first[dim]
        if each != first:
            return None
    first[dim] = length
    return [tuple(first)]


def _reduced(data: Tensor, dims: Sequence[int] | None = None, keeps: bool = False) -> Shapes | None:
    count = data.dim()
    if any(not -count <= dim < count for dim in dims or ()):
        return None
    gone = {dim % count for dim in dims or range(count)}
    if keeps:
        return [tuple(1 if dim in gone else length for dim, length in enumerate(data.shape))]
    return [tuple(length for dim, length in enumerate(data.shape) if dim not in gone)]


def _max_pool(
    data: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), up: bool = False,
) -> Shapes | None:  # fmt: skip
    found = _pooled(data, kernel, stride, padding, dilation, up)
    return None if found is None else [found, found]


def _average_pool(
    data: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    up: bool = False, *_: Any,
) -> Shapes | None:  # fmt: skip
    found = _pooled(data, kernel, stride, padding, (1,), up)
    return None if found is None else [found]


def _pooled(data: Tensor, *numbers: Any) -> Shape | None:
    """Return the shape of an image whose last two dimensions are pooled; the last number says to round up."""
    *windows, up = numbers
    kernel, stride, padding, dilation = (list(each) * 2 if len(each) == 1 else list(each) for each in windows)
    stride = stride or kernel
    if (
        data.dim() != 4
        or any(len(each) != 2 for each in (kernel, stride, padding, dilation))
        or min(stride) < 1
    ):
        return None
    places = []
    for length, size, step, pad, reach in zip(data.shape[2:], kernel, stride, padding, dilation, strict=True):
        room = length + 2 * pad - reach * (size - 1) - 1
        found = (room + (step - 1 if up else 0)) // step + 1
        if up and (found - 1) * step >= length + pad:  # the last window has to start inside
            found -= 1
        if room < 0 or pad > size // 2:
            return None
        places.append(found)
    return (*data.shape[:2], *places)


_POINTWISE: Final = frozenset(
    {"hardtanh", "hardswish", "hardsigmoid", "gelu", "elu", "celu", "selu", "softplus", "clone"}
)
"""Operations of one tensor that work element by element and are not tagged so."""

_BROADCAST: Final = Formula(_broadcast)
_FORMULAS: Final = {
    "convolution": Formula(_convolution, free=frozenset({8})),
    "native_batch_norm": Formula(_batch_norm),
    "native_layer_norm": Formula(_layer_norm, free=frozenset({1})),
    "mm": Formula(_mm),
    "addmm": Formula(_addmm),
    "bmm": Formula(_bmm),
    "cat": Formula(_cat),
    "mean": Formula(_reduced),
    "sum": Formula(_reduced),
    "max_pool2d_with_indices": Formula(_max_pool),
    "avg_pool2d": Formula(_average_pool),
    **dict.fromkeys(("roll", "_softmax", "_log_softmax", "_safe_softmax"), Formula(_like_first)),
}
