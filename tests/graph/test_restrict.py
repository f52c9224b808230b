from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prunecli.graph.groups import find_groups
from prunecli.graph.restrict import restrict
from prunecli.graph.structure import Axis, Structure
from prunecli.surgery import apply_plan

from . import nets
from .cutting import random_plan, shake


def pairs(positions: np.ndarray, units: np.ndarray) -> list[tuple[int, int]]:
    return sorted(zip(positions.tolist(), units.tolist(), strict=True))


def owners(axis: Axis | None, groups: set[str]) -> list[tuple[str, list[tuple[int, int]]]]:
    named = () if axis is None else axis.owners
    return sorted((each.group, pairs(each.positions, each.units)) for each in named if each.group in groups)


def facts(structure: Structure, groups: set[str]) -> dict[str, Any]:
    """Return what a structure says of these groups, as values that compare."""
    return {
        "widths": {group.name: group.width for group in structure.groups if group.name in groups},
        "members": {
            group.name: sorted(
                (each.tensor, each.dim, each.role, each.side, each.gated, pairs(each.positions, each.units))
                for each in group.members
            )
            for group in structure.groups
            if group.name in groups
        },
        "sites": {
            group.name: [
                (each.call, each.kind, each.operand, each.dim, each.length, pairs(each.positions, each.units))
                for each in group.sites
            ]
            for group in structure.groups
            if group.name in groups
        },
        "tensors": {
            name: (each.shape, [owners(axis, groups) for axis in each.axes])
            for name, each in structure.tensors.items()
        },
        "attributes": sorted(
            (each.module, each.name, each.entry or 0, each.axis.length)
            for each in structure.attributes
            if owners(each.axis, groups)
        ),
    }


@pytest.mark.parametrize("case", nets.CASES, ids=lambda case: case.name)
def test_restricted_structure_is_that_of_the_smaller_model(case: nets.Case) -> None:
    torch.manual_seed(0)
    model = shake(case.build())
    structure = find_groups(model, case.example(1))
    plan = random_plan(structure)
    kept = plan.kept()

    restricted = restrict(structure, kept)

    found = find_groups(apply_plan(model, structure, plan), case.example(1))
    groups = {group.name for group in found.groups}  # what is one or two units wide may not be found again
    assert facts(restricted, groups) == facts(found, groups)
    assert {group.name: group.width for group in restricted.groups} == {
        name: int(stays.sum()) for name, stays in kept.items()
    }
    assert restricted.parameter_count({}) == structure.parameter_count(kept)
    assert restricted.macs({}) == structure.macs(kept)
