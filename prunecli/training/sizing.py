"""Counts of activations -> how wide each layer is to be, and which of its units stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from prunecli.budget.amounts import rounded
from prunecli.budget.limits import Limit
from prunecli.graph.structure import Group, Kept, Structure
from prunecli.importance import score
from prunecli.training.density import Counts


class Select(str, Enum):
    """Which units stay."""

    RANDOM = "random"
    L1 = "l1"  # those with the largest weights


def new_width(counts: Counts, group: Group, limit: Limit) -> int:
    """Return max(1, round(AE * width)), halves up, or the next width above it that is allowed.

    >>> counts = Counts({"conv": torch.tensor(2)}, {"conv": 6})
    >>> new_width(counts, Group("conv", 3, ()), Limit((3, 2, 1), settled=False))
    1
    """
    wanted = limit.allowed[0] if limit.settled else max(rounded(counts.part(group.name, group.width)), 1)
    return min(min(width for width in limit.allowed if width >= wanted), group.width)


def choose(
    model: nn.Module,
    structure: Structure,
    present: Kept,
    counts: Counts,
    limits: Mapping[str, Limit],
    select: Select,
    seed: int,
) -> Kept:
    """Return which dense units the next net has, for the groups that were counted.

    Args:
        model: the net as it is.
        structure: of it.
        present: which of the dense units it has.
        counts: of its activations.
        limits: how wide groups may be.
        select: which units stay.
        seed: of the lot.
    """
    groups = [group for group in structure.groups if group.name in limits and counts.of(group.name)[1]]
    orders = _orders(model, replace(structure, groups=tuple(groups)), select, seed)
    kept = {}
    for group in groups:
        stay = orders[group.name][: new_width(counts, group, limits[group.name])]
        kept[group.name] = np.zeros_like(present[group.name])
        kept[group.name][np.flatnonzero(present[group.name])[stay.numpy()]] = True
    return kept


def _orders(model: nn.Module, structure: Structure, select: Select, seed: int) -> Mapping[str, Tensor]:
    """Return the units of each group, those first that are to stay."""
    match select:
        case Select.RANDOM:
            generator = torch.Generator().manual_seed(seed)
            return {
                group.name: torch.randperm(group.width, generator=generator) for group in structure.groups
            }
        case Select.L1:
            found = score(model, structure, methods=["magnitude-l1"])["magnitude-l1"].by_group
            return {name: values.argsort(descending=True, stable=True) for name, values in found.items()}
        case _:
            assert_never(select)
