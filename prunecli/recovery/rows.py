"""A layer's input and output -> matching rows: what one output position reads, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import pad

_PARTS = 8
"""So many parts of the sample have places of their own in the picture."""


@dataclass(frozen=True)
class Geometry:
    """How a layer walks over its input. A linear layer has no spatial dimensions."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def geometry_of(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Geometry | None:
    """Return how a call of a layer walks over its input; None where it pads in a way of its own."""
    if function == "linear":
        return Geometry((), (), (), (), 1)
    values = dict(zip(("stride", "padding", "dilation", "groups"), args[3:], strict=False)) | dict(kwargs)
    weight: Tensor = args[1]
    dims = weight.dim() - 2

    def each(name: str, default: int) -> tuple[int, ...]:
        value = values.get(name, default)
        return (value,) * dims if isinstance(value, int) else tuple(value)

    if values.get("padding") == "valid":
        values["padding"] = 0
    if isinstance(values.get("padding"), str) or args[0].dim() != dims + 2:
        return None
    kernel = tuple(weight.shape[2:])
    return Geometry(
        kernel, each("stride", 1), each("padding", 0), each("dilation", 1), int(values.get("groups", 1))
    )


def choose_places(
    samples: int, shape: Sequence[int], most: int, generator: torch.Generator
) -> list[Int64[Tensor, " places"]]:
    """Return, for each part of the sample, which places of a map are looked at: `most` rows in all."""
    places = prod(shape)
    count = min(places, max(most // samples, 1))
    if count == places:
        return [torch.arange(places)]
    return [
        torch.randperm(places, generator=generator)[:count].sort().values for _ in range(min(_PARTS, samples))
    ]


def inputs_at(data: Tensor, geometry: Geometry, shape: Sequence[int], places: Sequence[Tensor]) -> Tensor:
    """Return what the layer reads for each row, in the order of `as_columns`: [groups, rows, columns]."""
    if not geometry.kernel:
        flat = data.reshape(data.shape[0], -1, data.shape[-1])
        return torch.cat([part[:, at].flatten(0, 1) for part, at in _parts(flat, places)])[None]
    margins = [n for amount in reversed(geometry.padding) for n in (amount, amount)]
    padded = (pad(data, margins) if any(margins) else data).movedim(1, -1).contiguous()
    taps = list(product(*map(range, geometry.kernel)))
    parts = _parts(padded, places)
    rows = data.new_empty((sum(len(part) * len(at) for part, at in parts), len(taps), data.shape[1]))
    first = 0
    for part, at in parts:
        corners = torch.unravel_index(at.to(data.device), tuple(shape))
        last = first + len(part) * len(at)
        for number, tap in enumerate(taps):
            index = [
                corner * stride + offset * dilation
                for corner, stride, offset, dilation in zip(
                    corners, geometry.stride, tap, geometry.dilation, strict=True
                )
            ]
            at_tap: tuple[Any, ...] = (slice(None), *index)
            rows[first:last, number] = part[at_tap].flatten(0, 1)  # [samples, places, channels]
        first = last
    if geometry.groups == 1:
        return rows.flatten(1)[None]
    apart = rows.reshape(*rows.shape[:2], geometry.groups, -1)
    return apart.permute(2, 0, 1, 3).flatten(2)


def as_columns(weight: Tensor, geometry: Geometry) -> Tensor:
    """Return a weight in the order of the columns, taps before channels: [groups, outputs, columns]."""
    grouped = weight.reshape(geometry.groups, -1, weight.shape[1], prod(geometry.kernel))
    return grouped.transpose(2, 3).flatten(2)


def as_weight(columns: Tensor, geometry: Geometry, like: Tensor) -> Tensor:
    """Undo `as_columns`."""
    by_tap = columns.reshape(*columns.shape[:2], prod(geometry.kernel), like.shape[1])
    return by_tap.transpose(2, 3).reshape(like.shape)


def outputs_at(
    result: Tensor, geometry: Geometry, places: Sequence[Tensor], kept: Tensor | None = None
) -> Tensor:
    """Return what the layer put out for each row, in all channels or those kept: [groups, rows, outputs]."""
    channels_last = result.movedim(1, -1) if geometry.kernel else result
    flat = channels_last.reshape(result.shape[0], -1, channels_last.shape[-1])
    rows = torch.cat([part[:, at.to(flat.device)].flatten(0, 1) for part, at in _parts(flat, places)])
    rows = rows if kept is None else rows.index_select(1, kept)
    return rows.reshape(len(rows), geometry.groups, -1).transpose(0, 1).contiguous()


def map_shape(result: Tensor, geometry: Geometry) -> tuple[int, ...]:
    """Return the places that a layer puts out numbers for."""
    return tuple(result.shape[2:]) if geometry.kernel else tuple(result.shape[1:-1])


def _parts(data: Tensor, places: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data.tensor_split(len(places)), places, strict=True))
