"""`contribution`, `contribution-inverse`: which share of the next layer's sums comes from a unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from prunecli.errors import ScoreError
from prunecli.graph.structure import Group, Member, Site, SiteKind
from prunecli.importance.context import Merge, Observed, State, UnitValues
from prunecli.importance.fold import by_unit
from prunecli.importance.gates import gate_sites
from prunecli.importance.look import Seen
from prunecli.importance.readings import (
    group_count,
    input_dim,
    read_at,
    readings,
    refuse_unread,
    sum_elsewhere,
)
from prunecli.importance.registry import Needs, method

DEAD = 1e-12
"""Sums of absolute contributions below this have no shares."""
SMALLEST = 1e-6
"""Signed sums are kept this far from zero."""


class Ratio(str, Enum):
    """What contributions are shares of."""

    ABS = "abs"
    SIGNED = "signed"


class Activation(str, Enum):
    """Which value of a neuron counts."""

    POST = "post"  # what the next layer reads
    PRE = "pre"  # what the neuron's own layer puts out, in absolute value


class Window(str, Enum):
    """Which micro-batches count."""

    ALL = "all"
    LAST_BATCH = "last-batch"


class Normalise(str, Enum):
    """What averages and maxima are divided by before they are added."""

    NONE = "none"
    LAYER_MAX = "layer-max"


@method(
    "contribution",
    needs=Needs.ACTIVATIONS,
    passes="1",
    source="rank-based train-time pruning (USC)",
)
@dataclass(frozen=True)
class Contribution:
    """Share of each neuron in the sums that the next layer makes: average and largest share, weighed.

    score = average * mean over f, j of rho_fjk + maximum * max over f, j of rho_fjk, where
    rho_fjk = |w_jk a_fk| / sum over i of |w_ji a_fi| is the share of neuron k in neuron j of the layer that
    reads it, on sample f. The shares of all neurons add up to 1. Biases take no share.

    The paper writes rho without absolute values (`ratio=signed`), where sums near zero blow up. Where
    several layers read a neuron, the averages and maxima run over the neurons of all of them; where
    one neuron fills several columns (behind a flatten), its shares are added. Sums that are zero have
    no shares: they are left out, and counted. With `conv`, j runs over the places of the maps too.
    """

    ratio: Annotated[Ratio, "Shares of absolute values, or signed ones."] = Ratio.ABS
    activation: Annotated[
        Activation, "What the next layer reads (post), or the absolute value before the ReLU (pre)."
    ] = Activation.POST
    window: Annotated[Window, "All samples, or those of the last micro-batch only."] = Window.ALL
    average: Annotated[float, "Weight of the average share."] = 0.5
    maximum: Annotated[float, "Weight of the largest share; 0 saves most of the time."] = 0.5
    normalise: Annotated[
        Normalise, "Divide averages and maxima by the layer's largest before they are added."
    ] = Normalise.NONE
    conv: Annotated[bool, "Score units that convolutions read too, which the paper does not."] = False

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: activations are read, not parameters."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse units that convolutions read, unless asked for, or that no layer reads."""
        unread = refuse_unread(group)
        if unread is not None:
            return unread
        if not self.conv and any(site.call.function != "linear" for site in readings(group)):
            return "is read by a convolution (`--method-arg conv=true` scores it as well)"
        if self.activation is Activation.PRE and not _read_as_made(group):
            return (
                "is not read as it was made: something other than an activation function stands between "
                "its one layer and the next (`--method-arg activation=post` scores it)"
            )
        return None

    def observe(self, batch: Observed) -> State:
        """Return three rows (sums of shares, how many there were, how many sums were mended), and maxima."""
        sums = {group.name: torch.zeros(3, group.width, dtype=torch.float64) for group in batch.groups}
        maxima = {name: torch.full_like(rows[0], -torch.inf) for name, rows in sums.items()}
        made = _made(batch) if self.activation is Activation.PRE else {}

        def add(seen: Seen) -> None:
            shared: _Shares | None = None  # where several groups are read together
            for group, site in read_at(seen, batch.groups):
                if shared is None or made:
                    shared = self._shares(seen, made.get(group.name, seen.tensor))
                sums[group.name] += shared.sums(group, site).cpu()
                if self.maximum:
                    largest = shared.largest(group, site).cpu()
                    maxima[group.name] = torch.maximum(maxima[group.name], largest)

        batch.looked.visit(SiteKind.READ, add)
        return State(sums, Merge.SUM if self.window is Window.ALL else Merge.LAST, maxima)

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the weighted sums of averages and maxima."""
        scores = {}
        for name, (shares, count, _) in total.values.items():
            mean, largest = shares / count.clamp_min(1), total.maxima[name].clone()
            largest[largest.isneginf()] = 0.0
            if self.normalise is Normalise.LAYER_MAX:
                mean, largest = _over_largest(mean), _over_largest(largest)
            scores[name] = self.average * mean + self.maximum * largest
        return scores

    def notes(self, total: State) -> tuple[str, ...]:
        """Say how many sums had no shares, or were moved away from zero."""
        mended = sum(int(rows[2, 0]) for rows in total.values.values())
        if not mended:
            return ()
        if self.ratio is Ratio.SIGNED:
            return (
                f"{mended} sums of contributions were nearer to zero than {SMALLEST:g}, and moved there.",
            )
        return (f"{mended} sums of contributions were zero (below {DEAD:g}), and left out.",)

    def _shares(self, seen: Seen, data: Tensor) -> _Shares:
        """Prepare the shares of one call."""
        if data.shape != seen.tensor.shape:
            raise ScoreError(
                f"`{seen.call.module}` reads {list(seen.tensor.shape)} of units that were made as "
                f"{list(data.shape)}. Use `--method-arg activation=post`."
            )
        data, weight = _at_least_single(data), _at_least_single(seen.weight)
        if self.activation is Activation.PRE:
            data = data.abs()
        if self.ratio is Ratio.ABS:
            return _Shares(seen, data.abs(), weight.abs(), _drop_dead)
        return _Shares(seen, data, weight, _clip)


@method(
    "contribution-inverse",
    needs=Needs.ACTIVATIONS,
    passes="1",
    source="rank-based train-time pruning (USC), its reversed ranking",
)
@dataclass(frozen=True)
class ContributionInverse(Contribution):
    """Minus `contribution`: the neurons that matter most go first, as a control.

    score = -(average * mean over f, j of rho_fjk + maximum * max over f, j of rho_fjk), with rho as in
    `contribution`.
    """

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the scores of `contribution`, with the sign flipped."""
        return {name: -score for name, score in super().finish(total, batches).items()}


class _Shares:
    """What the layer of one call makes of its inputs, as shares: rho_fjk = w_jk a_fk / D_fj.

    Args:
        seen: The call.
        data: a, as it counts.
        weight: w, as it counts.
        mend: D -> 1/D, and which entries of D count, and which were mended.
    """

    def __init__(
        self,
        seen: Seen,
        data: Tensor,
        weight: Tensor,
        mend: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        self.seen, self.data, self.weight = seen, data, weight
        with torch.enable_grad():
            followed = data.detach().requires_grad_()
            denominators = seen.product(followed, weight)
            self.inverse, counted, mended = mend(denominators.detach())
            # a * d/da of the sum over j of log D_fj is the sum over j of the shares, in one backward pass.
            (slope,) = torch.autograd.grad(denominators, followed, self.inverse)
        self.over_neurons = data * slope
        self.counts = torch.stack([counted.sum(), mended.sum()]).double()

    def sums(self, group: Group, site: Site) -> Tensor:
        """Return three rows: each unit's shares added up, how many sums count, how many were mended."""
        shares = by_unit(sum_elsewhere(self.over_neurons, site.dim), group, site)
        return torch.cat([shares[None], self.counts[:, None].expand(2, group.width)])

    def largest(self, group: Group, site: Site) -> Tensor:
        """Return each unit's largest share."""
        found = [
            self._numerators(site, site.positions[site.units == unit]).mul_(self.inverse).max()
            for unit in range(group.width)
        ]
        return torch.stack(found).double()

    def _numerators(self, site: Site, positions: np.ndarray) -> Tensor:
        """Return what the units at these positions add to each sum."""
        index = torch.from_numpy(positions).to(self.data.device)
        data = self.data.index_select(site.dim, index)
        if group_count(self.seen) == 1:
            return self.seen.product(data, self.weight.index_select(input_dim(self.seen), index))
        return self.seen.product(torch.zeros_like(self.data).index_copy(site.dim, index, data), self.weight)


def _drop_dead(denominators: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leave out sums without contributions."""
    alive = denominators >= DEAD
    return torch.where(alive, 1 / denominators, 0.0), alive, ~alive


def _clip(denominators: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move sums near zero away from it; all count."""
    near = denominators.abs() < SMALLEST
    clipped = torch.where(near, torch.where(denominators < 0, -SMALLEST, SMALLEST), denominators)
    return 1 / clipped, torch.ones_like(near), near


def _over_largest(values: Tensor) -> Tensor:
    largest = values.abs().amax()
    return values / largest if largest else values


def _at_least_single(tensor: Tensor) -> Tensor:
    """Return the tensor, in float32 if it has half precision: shares span many orders of magnitude."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def _read_as_made(group: Group) -> bool:
    """Return whether the one layer that makes the units lays them out as they are read."""
    made = [site for site in gate_sites(group) if site.kind is SiteKind.MADE]
    return (
        len(made) == 1 and made[0].operand is None and all(_alike(made[0], each) for each in readings(group))
    )


def _alike(one: Site, other: Site) -> bool:
    same_place = (one.dim, one.length) == (other.dim, other.length)
    return (
        same_place
        and np.array_equal(one.positions, other.positions)
        and np.array_equal(one.units, other.units)
    )


def _made(batch: Observed) -> dict[str, Tensor]:
    """Return, by group, what its layer puts out."""
    gates = {id(site): group.name for group in batch.groups for site in gate_sites(group)}
    found: dict[str, Tensor] = {}

    def keep(seen: Seen) -> None:
        found.update({gates[id(site)]: seen.tensor.clone() for _, site in seen.sites if id(site) in gates})

    batch.looked.visit(SiteKind.MADE, keep)
    return found
