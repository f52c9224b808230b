"""Where layers read units, and what belongs to one unit there: for methods that look at activations."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from prunecli.graph.structure import Group, Role, Site, SiteKind
from prunecli.importance.look import Seen


def readings(group: Group) -> tuple[Site, ...]:
    """Return where a layer adds up the units of a group, each times its weight.

    A depthwise convolution reads each unit by itself, and makes it again: that is no reading.
    """
    weights = {member.tensor for member in group.consumers}
    return tuple(
        site
        for site in group.sites
        if site.kind is SiteKind.READ
        and site.dim == _added_up(site.call.function)
        and weights.intersection(site.tensors)
    )


def refuse_unread(group: Group) -> str | None:
    """Say why the layers that read a group cannot be looked at; None if they can."""
    weights = {member.tensor for member in group.consumers if member.role is Role.WEIGHT}
    seen = {name for site in readings(group) for name in site.tensors}
    if not seen:
        return "is read by no linear layer and by no convolution"
    if not weights <= seen:
        return f"is read by `{min(weights - seen)}` in a call that is no linear layer and no convolution"
    return None


def read_at(seen: Seen, groups: Collection[Group]) -> Iterator[tuple[Group, Site]]:
    """Yield which of the groups a layer reads here, and where they lie."""
    names = {group.name for group in groups}
    for group, site in seen.sites:
        if group.name in names and any(site is reading for reading in readings(group)):
            yield group, site


def sum_elsewhere(values: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one: in float64, or exactly for whole numbers."""
    dtype = torch.float64 if values.is_floating_point() else torch.int64
    others = [other for other in range(values.dim()) if other != dim % values.dim()]
    return values.sum(others, dtype=dtype) if others else values.to(dtype)


def input_dim(seen: Seen) -> int:
    """Return along which dimension of its weight a layer takes in units."""
    return 0 if "transpose" in seen.call.function else 1


def group_count(seen: Seen) -> int:
    """Return into how many groups a convolution parts its channels; 1 for a linear layer."""
    return int(seen.kwargs.get("groups", seen.args[6] if len(seen.args) > 6 else 1))


def as_taps_see(seen: Seen, maps: Tensor) -> Tensor:
    """Return what each tap of a kernel makes of each map, were its weight 1: [maps, taps, places]."""
    blocks, kernel = group_count(seen), seen.weight.shape[2:]
    count = kernel.numel()
    taps = torch.eye(count, dtype=maps.dtype, device=maps.device)
    layout = (1, count, *kernel) if input_dim(seen) == 0 else (count, 1, *kernel)
    taps = torch.cat([taps.reshape(layout)] * blocks)  # the call parts its channels: show it all the same one
    data = maps[:, None].expand(-1, blocks, *maps.shape[1:])
    return seen.product(data, taps)[:, :count].flatten(2)


def _added_up(function: str) -> int:
    """Return the dimension that a layer adds up: the last of `linear`, the channels of `conv2d`."""
    return -1 if function == "linear" else -1 - int(function[-2])
