"""`i-spasp`: which units rebuild what the next layer makes of all of them, by greedy selection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from prunecli.graph.structure import Group, Member, Site, SiteKind
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import by_unit
from prunecli.importance.look import Seen
from prunecli.importance.readings import (
    as_taps_see,
    group_count,
    input_dim,
    read_at,
    refuse_unread,
    sum_elsewhere,
)
from prunecli.importance.registry import Needs, method

_ENTRIES = 2**24
"""How many numbers a step may hold at once."""


class Importance(str, Enum):
    """How units outside the selection are ordered by y."""

    SIGNED = "signed"
    ABS = "abs"


@method(
    "i-spasp",
    needs=Needs.ACTIVATIONS,
    passes="1",
    source="i-SpaSP (arXiv 2112.04905), over all sizes",
)
@dataclass(frozen=True)
class ISpaSP:
    """Share of all sizes s at which i-SpaSP selects the unit into its s units.

    score = (number of sizes s in 1..width with the unit in S(s)) / width, with S(s) the selection of
    the paper for size s: S = {}; then up to `iterations` times, until S is stable:
    y = W^T (W h - W[:,S] h[S]), S = the s largest h among S and the 2s largest y. W is the weight of
    the layer that reads the units, h the sum of the unit's activations over samples and places.

    The paper's: the selection for one size, y with its sign (`importance=abs` takes |y|), and for
    convolutions y = the gradient of 1/2 ||dense - pruned output||^2 in the unit's map, summed over
    samples and places, with the stride and the padding of the layer. From half of the units on, 2s
    covers all of them, and S(s) is the s largest h.

    Ours: a score for any budget. Where the selections are nested, the s best scores are S(s); where
    they are not, the two share most of their units (nine in ten, on average over random layers). Where
    several layers read the units, their y and their h are added. Where a unit fills several columns
    (behind a flatten), the columns are its places. Silent units, whose activations are all zero, are
    not selected even where there is room for them: they score 0, and are the first to go.

    No activations are kept: y is linear in what is left out, so one matrix of width x width per group,
    with entries that add up over samples, holds all that is needed.
    """

    importance: Annotated[Importance, "Order by y, or by its absolute value."] = Importance.SIGNED
    iterations: Annotated[int, "How often a selection is improved, at most."] = 20

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: activations and the weights of calls are read, not parameters."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse units whose readers cannot be looked at."""
        return refuse_unread(group)

    def observe(self, batch: Observed) -> State:
        """Return, per group, the rows of the matrix that makes y, and h below them."""
        found = {
            group.name: torch.zeros(group.width + 1, group.width, dtype=torch.float64)
            for group in batch.groups
        }

        def add(seen: Seen) -> None:
            for group, site in read_at(seen, batch.groups):
                make = _of_linear if seen.call.function == "linear" else _of_convolution
                found[group.name] += make(seen, group, site).cpu()

        batch.looked.visit(SiteKind.READ, add)
        return State(found)

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the share of sizes at which each unit is selected."""
        return {
            name: shares_of_sizes(rows[:-1], rows[-1], self.iterations, self.importance)
            for name, rows in total.values.items()
        }


def shares_of_sizes(
    matrix: Float64[Tensor, "width width"],
    sums: Float64[Tensor, " width"],
    iterations: int = 20,
    importance: Importance = Importance.SIGNED,
) -> Float64[Tensor, " width"]:
    """Return the share of sizes at which each unit is selected."""
    width = len(sums)
    step = max(_ENTRIES // width, 1)
    parts = torch.arange(1, width + 1, device=sums.device).split(step)
    counts = [selections(matrix, sums, sizes, iterations, importance).sum(0) for sizes in parts]
    return torch.stack(counts).sum(0).double() / width


def selections(
    matrix: Float64[Tensor, "width width"],
    sums: Float64[Tensor, " width"],
    sizes: Tensor,
    iterations: int = 20,
    importance: Importance = Importance.SIGNED,
) -> Bool[Tensor, "sizes width"]:
    """Return which units are selected for each size.

    Args:
        matrix: What makes y of the units that are left out: y = matrix @ left_out.
        sums: h.
        sizes: How many units to select.
        iterations: How often a selection is improved, at most.
        importance: How y orders units.

    >>> h = torch.tensor([3.0, 8.0, 1.0], dtype=torch.float64)
    >>> selections(h.diag(), h, torch.tensor([1, 2]))  # the next layer is the identity
    tensor([[False,  True, False],
            [ True,  True, False]])
    """
    by_sum = sums.argsort(descending=True, stable=True)
    sounds = (sums != 0) | matrix.any(0)
    selected = torch.zeros(len(sizes), len(sums), dtype=torch.bool, device=sums.device)
    unstable = torch.arange(len(sizes), device=sums.device)
    for _ in range(iterations):
        before, size = selected[unstable], sizes[unstable, None]
        gains = (~before).double() @ matrix.T
        if importance is Importance.ABS:
            gains = gains.abs()
        place = gains.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        candidates = (((place < 2 * size) | before) & sounds)[:, by_sum]
        after = torch.empty_like(before)
        after[:, by_sum] = candidates & (candidates.cumsum(1) <= size)
        selected[unstable] = after
        unstable = unstable[(after != before).any(1)]
        if not len(unstable):
            break
    return selected


def _of_linear(seen: Seen, group: Group, site: Site) -> Tensor:
    """Return the matrix W^T W diag(h), the columns of one unit added up, and h below it."""
    weight = seen.weight.double()
    sums = sum_elsewhere(seen.tensor, site.dim)
    matrix = by_unit(weight, group, site).T @ by_unit(weight * sums, group, site)
    return torch.cat([matrix, by_unit(sums, group, site)[None]])


def _of_convolution(seen: Seen, group: Group, site: Site) -> Tensor:
    """Return the matrix M with y = M @ left_out, and h below it.

    A convolution is linear, so the maps may be summed over samples first; call that H. With W_t the
    weight's entries at tap t of the kernel, and H_t the map as tap t sees it (shifted, strided, zero
    in the padding), M[k, c] = sum over t, u of (W_t^T W_u)[k, c] * sum over places of 1_t * H_u[c]: the
    backward pass meets a place of the map once for each tap t that sees it.
    """
    maps = seen.tensor.double()
    maps = maps.sum(0) if maps.dim() > -site.dim else maps
    taps = _tap_products(seen, maps)
    weight = _by_block(seen)
    blocks, _, channels, _ = weight.shape
    reached = torch.einsum("boiu,bitu->boit", weight, taps.reshape(blocks, channels, *taps.shape[1:]))
    matrix = torch.block_diag(*torch.einsum("boit,bojt->bij", weight, reached))
    matrix = by_unit(by_unit(matrix, group, site).T, group, site).T
    return torch.cat([matrix, by_unit(sum_elsewhere(maps, 0), group, site)[None]])


def _by_block(seen: Seen) -> Tensor:
    """Return the weight as [blocks, outputs, inputs, taps]: a block for each group of the convolution."""
    weight, blocks = seen.weight.double(), group_count(seen)
    weight = weight.reshape(blocks, weight.shape[0] // blocks, weight.shape[1], -1)
    return weight.transpose(1, 2) if input_dim(seen) == 0 else weight


def _tap_products(seen: Seen, maps: Tensor) -> Tensor:
    """Return sum over places of 1_t * H_u[c] for all channels c and pairs of taps: [channels, t, u]."""
    ones = as_taps_see(seen, torch.ones_like(maps[:1]))[0]
    step = max(_ENTRIES // ones.numel(), 1)
    return torch.cat(
        [torch.einsum("tp,cup->ctu", ones, as_taps_see(seen, part)) for part in maps.split(step)]
    )
