"""Masks -> the units that they empty, as a plan: single weights that went yield a smaller network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prunecli.graph.cutting import slice_masks
from prunecli.graph.structure import Group, Kept, Member, Role, SiteKind, Structure
from prunecli.importance.look import Conditions, Look, Seen
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.readings import read_at, refuse_unread
from prunecli.importance.undisturbed import ScoreBN, undisturbed
from prunecli.plan import Plan
from prunecli.weights.network import Masks

BUDGET = "collapse"
"""What the plan says in the place of a budget."""

_DATA_PRODUCTS = ("bmm", "baddbmm")
"""Operations in which data meets data: what attention is made of."""


@dataclass(frozen=True, eq=False)
class Collapse:
    """Which units go because masks empty them, and what goes with them."""

    plan: Plan
    masks: Masks
    """Those of the smaller model."""
    constants: Mapping[str, int] = field(default_factory=dict)
    """Group -> units that go though layers read them: what they put out is a constant, and goes too."""
    notes: tuple[str, ...] = ()

    @property
    def gone(self) -> int:
        """How many units go."""
        return self.plan.unit_count - self.plan.kept_count

    @property
    def constant_count(self) -> int:
        """How many of them put out a constant that is not zero: so far, the function changes."""
        return sum(self.constants.values())


def collapse(
    model: nn.Module,
    structure: Structure,
    masks: Masks,
    example: tuple[tuple[Any, ...], Mapping[str, Any]],
    *,
    method: str,
    seed: int = 0,
    digests: Mapping[str, str] | None = None,
) -> Collapse:
    """Find the units whose weights are all gone. See `units_left`.

    Args:
        model: The masked model; it is left as it is.
        structure: What goes together in it.
        masks: Parameter -> a bool per weight, True = keep.
        example: Positional and keyword inputs of one sample, to see which constants are zero.
        method: What the weights were masked by.
        seed: Of that.
        digests: What the plan was made from.
    """
    state = _settle(structure, masks)
    kept = {name: ~gone for name, gone in state.gone.items()}
    plan = Plan(
        keep={name: tuple(np.flatnonzero(stays).tolist()) for name, stays in kept.items()},
        widths={group.name: group.width for group in structure.groups},
        method=method,
        budget=BUDGET,
        seed=seed,
        digests=digests or {},
    )
    return Collapse(
        plan, slice_masks(masks, structure, kept), _constants(model, structure, state, example), _notes(state)
    )


def units_left(structure: Structure, masks: Masks) -> dict[str, NDArray[np.bool_]]:
    """Return, by group, which units stay: a bool per unit.

    A unit goes when every weight that makes it is masked, or every weight that reads it: then the function
    is the same without it, but for a constant that its bias and normalisation put out where none makes it.
    Weights of units that go count as gone themselves, until nothing changes; weights without a mask are
    there. A unit that a normalisation averages with others, or that data is multiplied with, goes only when
    nothing makes it. Every group keeps a unit, its first.
    """
    return {name: ~gone for name, gone in _settle(structure, masks).gone.items()}


@dataclass(frozen=True, eq=False)
class _State:
    """What is gone so far."""

    gone: Kept
    """Group -> units that go: True where one does."""
    unread: Kept
    """Units that nothing reads, so that the function is the same without them."""
    emptied: frozenset[str] = frozenset()
    """Groups of which no unit is left but the one that must stay."""


def _settle(structure: Structure, masks: Masks) -> _State:
    """Let units go until no more do."""
    products = set(_groups_in_products(structure))
    always_read = products | {group.name for group in structure.groups if group.changes_statistics}
    state = _State({group.name: np.zeros(group.width, dtype=bool) for group in structure.groups}, {})
    while True:
        before, state = state, _let_go(structure, _There(structure, masks, state.gone), state, always_read)
        if all((state.gone[name] == gone).all() for name, gone in before.gone.items()):
            return state


def _let_go(structure: Structure, there: _There, before: _State, always_read: set[str]) -> _State:
    """Let those units go too of which no weight is there; none comes back, but the one that must stay."""
    gone, unread, emptied = {}, {}, set(before.emptied)
    for group in structure.groups:
        name = group.name
        unread[name] = there.lack(group, () if name in always_read else _readers(group))
        gone[name] = before.gone[name] | there.lack(group, _makers(group)) | unread[name]
        if gone[name].all() or name in emptied:
            emptied.add(name)
            gone[name][0] = False
    return _State(gone, unread, frozenset(emptied))


def _makers(group: Group) -> tuple[Member, ...]:
    """Return the weights that make the units."""
    return tuple(member for member in group.producers if member.role is Role.WEIGHT)


def _readers(group: Group) -> tuple[Member, ...]:
    """Return what reads the units: a tied weight may both make and read them."""
    tied = {
        name
        for site in group.sites
        if site.kind is SiteKind.READ and not site.call.function.startswith("conv")  # may be depthwise
        for name in site.tensors
    }
    return (*group.consumers, *(member for member in _makers(group) if member.tensor in tied))


@dataclass(frozen=True, eq=False)
class _There:
    """Which entries of weights are there: those not masked, between units that do not go."""

    structure: Structure
    masks: Masks
    gone: Kept

    def lack(self, group: Group, members: Sequence[Member]) -> NDArray[np.bool_]:
        """Return the units of which no entry is there in any of these members; none where there is none."""
        left = np.zeros(group.width, dtype=bool)
        for member in members:
            np.logical_or.at(left, member.units, self._along(member)[member.positions])
        return ~left if members else left

    def _along(self, member: Member) -> NDArray[np.bool_]:
        """Return the positions of a member at which an entry is there, whether they go themselves or not."""
        described = self.structure.tensors[member.tensor]
        mask = self.masks.get(member.tensor)
        there = torch.ones(described.shape, dtype=torch.bool) if mask is None else mask.cpu()
        kept = {name: ~gone for name, gone in self.gone.items()}
        for dim, axis in enumerate(described.axes):
            if axis is not None and dim != member.dim and not (stays := axis.kept(kept)).all():
                there = there.index_select(dim, torch.from_numpy(np.flatnonzero(stays)))
        first = there.movedim(member.dim, 0)  # a vector is one for each unit as it is
        found: NDArray[np.bool_] = (first.flatten(1).any(1) if first.dim() > 1 else first).numpy()
        return found


def _groups_in_products(structure: Structure) -> Iterator[str]:
    """Yield the groups along which data is multiplied with data: a reader without a weight."""
    for term in structure.cost_terms:
        if term.op in _DATA_PRODUCTS:
            yield from (owner.group for axis in term.axes for owner in axis.owners)


def _constants(
    model: nn.Module,
    structure: Structure,
    state: _State,
    example: tuple[tuple[Any, ...], Mapping[str, Any]],
) -> dict[str, int]:
    """Count, by group, the units that go and are read, and put out something else than zero."""
    lost = {group.name: state.gone[group.name] & ~state.unread[group.name] for group in structure.groups}
    groups = [group for group in structure.groups if lost[group.name].any()]
    sounding = _sounding(model, groups, example) if groups else {}
    counts = {
        group.name: int((lost[group.name] & sounding.get(group.name, np.array(True))).sum())
        for group in groups
    }
    return {name: count for name, count in counts.items() if count}


def _sounding(
    model: nn.Module, groups: list[Group], example: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> dict[str, NDArray[np.bool_]]:
    """Return, by group, which units are not zero where layers read them, for one sample.

    Groups of which that cannot be seen are left out: normalised ones, and those read in another way.
    """
    args, kwargs = example
    if args and kwargs:
        return {}
    seen = [group for group in groups if refuse_unread(group) is None and not group.changes_statistics]
    found = {group.name: np.zeros(group.width, dtype=bool) for group in seen}

    def look(at: Seen) -> None:
        for group, site in read_at(at, seen):
            values = (at.tensor != 0).movedim(site.dim, 0).flatten(1).any(1).cpu().numpy()
            np.logical_or.at(found[group.name], site.units, values[site.positions])

    with undisturbed(model, ScoreBN.EVAL, 0):
        conditions = Conditions(model, tuple(seen), None, ScoreBN.EVAL)
        Look(conditions, MicroBatch(kwargs or args, None, 1), 0).visit(SiteKind.READ, look)
    return found


def _notes(state: _State) -> tuple[str, ...]:
    """Name the groups of which nothing would be left."""
    return tuple(
        f"`{name}`: all of its units are empty, and one of them stays, since a layer cannot be without any."
        for name in sorted(state.emptied)
    )
