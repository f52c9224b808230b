"""Constraints + structure -> for each group, how many units may stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import ceil

from prunecli.budget.amounts import rounded, units_of
from prunecli.errors import UsageError
from prunecli.graph.structure import Group, Structure
from prunecli.plan import Constraints


@dataclass(frozen=True)
class Limit:
    """How many units of a group may stay."""

    allowed: tuple[int, ...]
    """The widths that it may have, descending from the dense one."""
    settled: bool
    """True if a constraint says it all, so that no budget has a say."""


def find_limits(structure: Structure, constraints: Constraints) -> dict[str, Limit]:
    """Return the limits of every group.

    Raises:
        UsageError: An amount is out of range, a pattern matches nothing, or two contradict each other.
    """
    _check_amounts(constraints)
    wanted = _settled_amounts(structure, constraints)
    limits = {}
    for group in structure.groups:
        allowed = allowed_widths(group.width, constraints)
        if group.name in wanted:
            _, amount = wanted[group.name]
            target = max(rounded(units_of(amount, group.width)), 1)
            limits[group.name] = Limit((min(width for width in allowed if width >= target),), settled=True)
        else:
            limits[group.name] = Limit(allowed, settled=False)
    return limits


def allowed_widths(width: int, constraints: Constraints) -> tuple[int, ...]:
    """Return the widths that a group may have: the dense one, and the multiples below it that keep enough.

    >>> allowed_widths(20, Constraints(round_to=8))
    (20, 16, 8)
    """
    least = ceil(units_of(constraints.min_keep, width))
    step = constraints.round_to
    highest = (width - 1) // step * step
    return (width, *range(highest, max(least - 1, 0), -step))


def _check_amounts(constraints: Constraints) -> None:
    if constraints.round_to < 1:
        raise UsageError(f"`--round-to {constraints.round_to}`: expected a whole number from 1 on.")
    amounts = {f"--keep-layer {pattern}": amount for pattern, amount in constraints.keep_layer.items()}
    for option, amount in {"--min-keep": constraints.min_keep, **amounts}.items():
        if amount <= 0 or (isinstance(amount, float) and amount > 1):
            raise UsageError(
                f"`{option}`: {amount} is neither units (1, 2, ...) nor a share above 0 and up to 1.0."
            )


def _settled_amounts(structure: Structure, constraints: Constraints) -> dict[str, tuple[str, int | float]]:
    """Return group -> (option, how much of it stays) for the groups that patterns settle."""
    options = [(f"--ignore {pattern}", pattern, 1.0) for pattern in constraints.ignore]
    options += [
        (f"--keep-layer {pattern}", pattern, amount) for pattern, amount in constraints.keep_layer.items()
    ]
    names = {group.name: names_of(group, structure.aliases) for group in structure.groups}
    found: dict[str, tuple[str, int | float]] = {}
    for option, pattern, amount in options:
        matched = [group for group, known in names.items() if _matches(pattern, known)]
        if not matched and not (
            option.startswith("--ignore") and _matches(pattern, _frozen_names(structure))
        ):
            known = {name for group in names.values() for name in group}
            raise UsageError(f"`{option}` matches no layer whose units can go.{_nearest(pattern, known)}")
        for group in matched:
            other, before = found.setdefault(group, (option, amount))
            if before != amount:
                raise UsageError(f"`{other}` and `{option}` contradict each other: both match `{group}`.")
    return found


def names_of(group: Group, aliases: Mapping[str, str]) -> set[str]:
    """Return what a pattern may call a group: its name, its producers' tensors and their modules.

    Layers that only read the units do not count: `--ignore conv2` leaves the outputs of `conv2` alone,
    not its inputs.
    """
    members = group.producers or group.members
    tensors = {member.tensor for member in members}
    tensors |= {alias for alias, name in aliases.items() if name in tensors}
    return {group.name} | tensors | {tensor.rpartition(".")[0] for tensor in tensors if "." in tensor}


def _frozen_names(structure: Structure) -> set[str]:
    """Return the names of what cannot be cut anyhow, and so is ignored already."""
    tensors = {tensor for axis in structure.frozen for tensor in axis.tensors}
    return {axis.name for axis in structure.frozen} | tensors | {name.rpartition(".")[0] for name in tensors}


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _nearest(pattern: str, known: Iterable[str]) -> str:
    found = get_close_matches(pattern, sorted(known), n=1, cutoff=0.4)
    return f" Did you mean `{found[0]}`?" if found else " `prunecli inspect` lists them."
