"""Gates: numbers that multiply units where they are made, without a change to the model.

A gate stands where the unit is last affine (METHODS 1.2): behind its normalisation, else behind its
layer. Producers that share their units (residual stages) share the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunecli.errors import ScoreError
from prunecli.graph.calls import CallWatch
from prunecli.graph.structure import CallKey, Group, Member, Site, SiteKind
from prunecli.importance.fold import rows_by


class Gate(str, Enum):
    """Where gates stand."""

    AFTER_BN = "after-bn"
    BEFORE_BN = "before-bn"  # behind the layer itself: to study what that does to scores, not to cut by


Gates = Mapping[str, Tensor]
"""Group name -> gates of shape [width], or [samples, width] where each sample has its own."""


def gate_sites(group: Group) -> tuple[Site, ...]:
    """Return where the units of a group are gated: where they are made, else where they are read.

    Empty where no call of the forward pass shows all of them.
    """
    gated = {member.tensor for member in group.members if member.gated}
    made = [site for site in group.sites if site.kind is SiteKind.MADE and gated.intersection(site.tensors)]
    if gated:
        return tuple(made) if gated <= {name for site in made for name in site.tensors} else ()
    return reading_sites(group)


def refuse_ungated(group: Group) -> str | None:
    """Say why no gates can be put on a group; None if they can."""
    return None if gate_sites(group) else "is made where no call of the forward pass shows its units"


class OnGates:
    """What methods share that look at gates, not at parameters."""

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: no parameter is read."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no gate can be put on."""
        return refuse_ungated(group)


@dataclass(frozen=True, eq=False)
class Place:
    """One tensor of one call that is multiplied, and by the gates of which groups."""

    operand: int | None
    dim: int
    length: int
    owners: tuple[tuple[Group, Site], ...]

    def factors(self, gates: Gates) -> Tensor:
        """Return what the positions are multiplied by: [length] or [samples, length]."""
        found = [
            factor for group, site in self.owners if group.name in gates
            for factor in self._factors_of(group, site, gates[group.name])
        ]  # fmt: skip
        return reduce(torch.mul, found)

    def _factors_of(self, group: Group, site: Site, gates: Tensor) -> Iterator[Tensor]:
        """Yield one factor per position; several where a position belongs to several units of the group."""
        table = rows_by(site.positions, site.units, self.length, fill=group.width)
        if table.shape == (group.width, 1) and (table[:, 0] == np.arange(group.width)).all():
            yield gates
            return
        padded = torch.cat([gates, gates.new_ones((*gates.shape[:-1], 1))], dim=-1)
        for column in table.T:
            yield padded[..., torch.from_numpy(column.copy()).to(gates.device)]


Places = Mapping[CallKey, Sequence[Place]]


def find_places(groups: Iterable[Group], sites: Callable[[Group], Iterable[Site]] = gate_sites) -> Places:
    """Return which calls of the forward pass are gated, and how."""
    owners: dict[tuple[CallKey, int | None, int, int], list[tuple[Group, Site]]] = {}
    for group in groups:
        for site in sites(group):
            owners.setdefault((site.call, site.operand, site.dim, site.length), []).append((group, site))
    places: dict[CallKey, list[Place]] = {}
    for (call, operand, dim, length), found in owners.items():
        places.setdefault(call, []).append(Place(operand, dim, length, tuple(found)))
    return places


def reading_sites(group: Group) -> tuple[Site, ...]:
    """Return where layers read the units of a group."""
    return tuple(site for site in group.sites if site.kind is SiteKind.READ)


class Gating(CallWatch):
    """Runs a forward pass with gates in it.

    Args:
        modules: The names of the modules that are running; see `following`.
        places: Where gates stand.
        gates: Their values, by group. Groups that are absent have none.
        samples: How many samples there are, one behind the other in a tensor's first dimension.
        shown: Hears of each place, with the tensor before its gates and behind them.
    """

    def __init__(
        self,
        modules: Sequence[str],
        places: Places,
        gates: Gates,
        samples: int,
        shown: Callable[[Place, Tensor, Tensor], None] | None = None,
    ) -> None:
        super().__init__(modules)
        self.places, self.gates, self.samples, self.shown = places, gates, samples, shown
        self.met: set[str] = set()
        """The groups whose gates the forward pass has met."""
        self.functions: set[str] = set()
        """The names of all functions that were called."""

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call, its operands and result gated."""
        self.functions.add(key.function)
        places = self.places.get(key)
        if places is None:
            return func(*args, **kwargs)
        changed = list(args)
        for place in places:
            if place.operand is not None:
                changed[place.operand] = self._gated(key, args[place.operand], widest(args), place)
        result = func(*changed, **kwargs)
        for place in places:
            if place.operand is None and any(result is arg for arg in args):
                # What a call wrote in place is what later calls read, whether they take its result or not.
                result = result.copy_(self._gated(key, result.clone(), result, place))
            elif place.operand is None:
                result = self._gated(key, result, result, place)
        return result

    def _gated(self, key: CallKey, tensor: Any, data: Any, place: Place) -> Any:
        """Multiply a tensor; the first dimension of `data` says which sample is which."""
        self._check(key, tensor, place)
        if not any(group.name in self.gates for group, _ in place.owners):
            return tensor
        self.met.update(group.name for group, _ in place.owners)
        product = tensor * self._shaped(place.factors(self.gates).to(tensor.dtype), data, place)
        if self.shown is not None:
            self.shown(place, tensor, product)
        return product

    def _shaped(self, factors: Tensor, data: Tensor, place: Place) -> Tensor:
        """Return the factors in a shape that lines up with the tensor."""
        trailing = [1] * (-place.dim - 1)
        if factors.dim() == 1:
            return factors.reshape(-1, *trailing)
        before = data.dim() + place.dim
        if before and data.shape[0] % self.samples == 0:
            # The first dimension may hold several parts (windows, heads) of each sample, one after the other.
            factors = factors.repeat_interleave(data.shape[0] // self.samples, dim=0)
        elif before == 0 or data.shape[0] > 1:
            before += 1  # the same for all samples, as what belongs to a place: now each has its own
        return factors.reshape(len(factors), *[1] * (before - 1), place.length, *trailing)

    def _check(self, key: CallKey, tensor: Any, place: Place) -> None:
        """Make sure that the tensor is the one that was traced."""
        fits = isinstance(tensor, Tensor) and tensor.dim() >= -place.dim
        if not fits or tensor.shape[place.dim] != place.length:
            raise other_path(key, tensor, place.length, place.dim)


def widest(args: Sequence[Any]) -> Tensor:
    """Return the operand of the most dimensions: that is data, not a parameter."""
    return max((arg for arg in args if isinstance(arg, Tensor)), key=Tensor.dim)


def other_path(key: CallKey, tensor: Any, length: int, dim: int) -> ScoreError:
    """Return the error that a tensor of the forward pass is not the one that was traced."""
    found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    return ScoreError(
        f"`{key.function}` in `{key.module or 'the model'}` holds {found} on this sample; the trace has "
        f"{length} positions along dimension {dim}. Forward takes another path on real data: use a method "
        "that looks at parameters and their gradients, such as `taylor-fo`."
    )


def ones_for(groups: Iterable[Group], samples: int | None, like: Tensor) -> dict[str, Tensor]:
    """Return open gates that gradients can be taken of, per sample if `samples` is given."""
    shape = () if samples is None else (samples,)
    return {
        group.name: torch.ones(
            (*shape, group.width), dtype=like.dtype, device=like.device, requires_grad=True
        )
        for group in groups
    }
