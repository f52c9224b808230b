"""`fpgm`: how far the weights of a unit are from those of all other units beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

from prunecli.graph.structure import Group, Member, Role
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import position_table
from prunecli.importance.registry import Needs, method

_BLOCK = 2**22
"""How many distances, and how many weights, are in memory at a time."""


@method("fpgm", needs=Needs.PARAMETERS, source="He et al., 2019, filter pruning via geometric median")
class FPGM:
    """Sum of the distances between each unit's weights and those of all other units of its group.

    score = sum over j of ||W_m - W_j||, with W_m the weights that make unit m, of all its producers, as
    one vector without biases, and ||.|| the L2 norm.

    A unit near the geometric median of all units is the one that the others can stand in for, however
    large its weights are. The sums grow with the number of units, so layers do not compare: rank
    within layers, `--scope layer`.
    """

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return the weights that make the units."""
        return tuple(member for member in group.producers if member.role is Role.WEIGHT)

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no weight makes."""
        return None if self.members(group) else "has no weights that make its units"

    def observe(self, batch: Observed) -> State:
        """Return the sums of distances."""
        return State(
            {
                group.name: _distance_sums(group.width, self.members(group), batch.parameters)
                for group in batch.groups
            }
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the sums, which are finished."""
        return total.values


def _distance_sums(
    width: int, members: tuple[Member, ...], parameters: Mapping[str, Tensor]
) -> Float64[Tensor, " width"]:
    """Sum the distances of each unit to all, a block of units and a part of their weights at a time."""
    step = max(_BLOCK // width, 1)
    sums = []
    for start in range(0, width, step):
        squares = torch.zeros((), dtype=torch.float64)
        for member in members:
            for weights in _weights_of_units(member, width, parameters[member.tensor]):
                squares = squares + torch.cdist(weights[start : start + step], weights).square()
        squares.diagonal(start).zero_()  # where cdist leaves what rounding makes of a difference of sums
        sums.append(squares.sqrt().sum(1))
    return torch.cat(sums)


def _weights_of_units(
    member: Member, width: int, parameter: Tensor
) -> Iterator[Float64[Tensor, "width entries"]]:
    """Yield the entries of each unit, a part at a time; a unit with fewer than others has zeros."""
    by_position = parameter.movedim(member.dim, 0).flatten(1) if parameter.ndim > 1 else parameter[:, None]
    if by_position.device.type == "mps":  # which has no float64
        by_position = by_position.cpu()
    table = torch.from_numpy(position_table(member, width, len(by_position))).to(by_position.device)
    for part in by_position.split(max(_BLOCK // table.numel(), 1), dim=1):
        part = part.to(torch.float64)
        padded = torch.cat([part, part.new_zeros(1, part.shape[1])])
        yield padded[table].flatten(1)
