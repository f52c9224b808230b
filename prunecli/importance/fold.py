"""One number per parameter entry -> one number per unit: the walk over members, written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from prunecli.graph.structure import Group, Member, Site

_PIECE_ON_CPU = 2**16
"""How many entries are folded at a time: so few that they stay in the cache of a CPU,"""
_PIECE_ELSEWHERE = 2**24
"""and so many that a GPU is busy; in neither case a second copy of a large parameter."""

_tables: WeakKeyDictionary[Member, dict[torch.device, Tensor | None]] = WeakKeyDictionary()


def unit_sums(
    group: Group, members: Sequence[Member], formula: Callable[..., Tensor], *tensors: Mapping[str, Tensor]
) -> Float64[Tensor, " width"]:
    """Sum, for each unit, what the formula makes of the entries that belong to it, over the members.

    Args:
        group: The units.
        members: The members of the group to sum over. A tensor that the group touches along two
            dimensions is two members, and counts once for each.
        formula: From parameter entries to saliencies, entry by entry. It gets float64.
        tensors: What the formula takes: by name, tensors of the parameters' shapes.
    """
    sums = [
        _member_sums(member, group.width, formula, [by_name[member.tensor] for by_name in tensors])
        for member in members
    ]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


def _member_sums(
    member: Member, width: int, formula: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> Float64[Tensor, " width"]:
    others = [dim for dim in range(tensors[0].ndim) if dim != member.dim]
    sums = []
    for pieces in _pieces(tensors, member.dim):
        saliency = formula(*(_in_float64(piece) for piece in pieces))
        sums.append(saliency.sum(others) if others else saliency)
    by_position = sums[0] if len(sums) == 1 else torch.cat(sums)
    table = _table_on(member, width, len(by_position), by_position.device)
    if table is None:
        return by_position
    # A gather, and not `index_add`, whose order of additions (so its last bits) varies on CUDA.
    padded = torch.cat([by_position, by_position.new_zeros(1)])
    return padded[table].sum(1)


def _pieces(tensors: Sequence[Tensor], dim: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching parts of the tensors, cut along `dim`."""
    first = tensors[0]
    entries = _PIECE_ON_CPU if first.device.type == "cpu" else _PIECE_ELSEWHERE
    step = max(entries * first.shape[dim] // max(first.numel(), 1), 1)
    return zip(*(tensor.split(step, dim) for tensor in tensors), strict=True)


def _in_float64(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, on the CPU where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)


def _table_on(member: Member, width: int, length: int, device: torch.device) -> Tensor | None:
    """Return `position_table` on `device`; None if position i is unit i."""
    known = _tables.setdefault(member, {})
    if device not in known:
        table = None if _is_in_order(member, width, length) else position_table(member, width, length)
        known[device] = None if table is None else torch.from_numpy(table).to(device)
    return known[device]


def _is_in_order(member: Member, width: int, length: int) -> bool:
    units, positions = member.units, member.positions
    if not width == length == units.size == positions.size:
        return False
    first = np.arange(width)
    return bool((units == first).all() and (positions == first).all())


def position_table(member: Member, width: int, length: int) -> NDArray[np.int64]:
    """Return one row of positions per unit, filled up with `length` where a unit has fewer than others."""
    return rows_by(member.units, member.positions, width, fill=length)


def rows_by(
    keys: NDArray[np.int64], values: NDArray[np.int64], count: int, *, fill: int
) -> NDArray[np.int64]:
    """Return, for each of the `count` keys, the row of its values, filled up to the longest row.

    >>> rows_by(np.array([0, 2, 0]), np.array([5, 6, 7]), 3, fill=-1).tolist()
    [[5, 7], [-1, -1], [6, -1]]
    """
    counts = np.bincount(keys, minlength=count)
    order = np.argsort(keys, kind="stable")
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    table = np.full((count, max(int(counts.max(initial=0)), 1)), fill, dtype=np.int64)
    column = np.arange(len(order)) - np.repeat(first, counts)
    table[keys[order], column] = values[order]
    return table


def by_unit(values: Tensor, group: Group, site: Site) -> Tensor:
    """Add up what belongs to one unit, along the last dimension: [..., positions] -> [..., width].

    >>> from prunecli.graph.structure import CallKey, SiteKind
    >>> call, positions, units = CallKey("", "linear", 0), np.array([0, 1, 2, 3]), np.array([0, 1, 0, 1])
    >>> flat = Site(call, SiteKind.READ, 0, -1, 5, positions, units, ())
    >>> by_unit(torch.tensor([1, 2, 3, 4, 5]), Group("conv", 2, ()), flat)
    tensor([4, 6])
    """
    table = rows_by(site.units, site.positions, group.width, fill=site.length)
    if table.shape == (site.length, 1) and np.array_equal(table[:, 0], np.arange(site.length)):
        return values
    padded = torch.cat([values, values.new_zeros((*values.shape[:-1], 1))], dim=-1)
    return padded[..., torch.from_numpy(table).to(values.device)].sum(-1)


def with_count(total: Tensor, samples: int) -> Tensor:
    """Return two rows that add up over micro-batches: a sum over samples, and how many there were."""
    return torch.stack([total, torch.full_like(total, samples)])
