"""Units that masks empty: which they are, what changes without them, and the proof that the cut is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunecli.graph.cutting import slice_masks
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Role, Side, Structure
from prunecli.parity import verify
from prunecli.surgery import apply_plan
from prunecli.weights import prunable_weights
from prunecli.weights.collapse import Collapse, collapse, units_left
from prunecli.weights.masked import with_masks
from tests import structures
from tests.graph.nets import CASES


def everything(structure: Structure) -> dict[str, Tensor]:
    """Return masks of all weights in which all of them stay."""
    return {
        name: torch.ones(tensor.shape, dtype=torch.bool)
        for name, tensor in structure.parameters()
        if tensor.role is Role.WEIGHT
    }


def empty(
    structure: Structure, masks: Mapping[str, Tensor], group: str, units: list[int], side: Side
) -> None:
    """Mask, in place, all weights that make some units of a group, or all that read them."""
    for member in structure.by_name[group].members:
        if member.side is side and member.role is Role.WEIGHT:
            positions = member.positions[np.isin(member.units, units)]
            masks[member.tensor].index_fill_(member.dim, torch.from_numpy(positions), False)


def collapsed(
    model: nn.Module, structure: Structure, masks: Mapping[str, Tensor], inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, nn.Module, Collapse]:
    """Return the masked model, the smaller one, and what went; proven."""
    masked = with_masks(model, masks).eval()
    found = collapse(masked, structure, masks, (tuple(each[:1] for each in inputs), {}), method="magnitude")
    smaller = apply_plan(masked, structure, found.plan)
    verify(masked, smaller, structure, found.plan, inputs)
    parameters = dict(smaller.named_parameters())
    for name, mask in found.masks.items():
        assert parameters[name].shape == mask.shape
        assert not parameters[name][~mask].any()
    return masked, smaller, found


def error(model: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Return the largest difference of what two models put out."""
    with torch.no_grad():
        one, two = model(*inputs), other(*inputs)
    return float((one - two).abs().max())


def without_constants(model: nn.Module) -> None:
    """Let units whose weights are all gone put out zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.zero_()
                module.running_mean.zero_()  # type: ignore[union-attr, operator]
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.zero_()


MAKES: tuple[Callable[[], structures.Case], ...] = structures.CASES


@pytest.mark.parametrize("make", MAKES)
def test_without_what_nothing_reads_the_function_is_the_same(make: Callable[[], structures.Case]) -> None:
    case = make()
    structure, (inputs, _) = case.structure, case.batch(2)
    masks = everything(structure)
    for group in structure.groups:
        empty(structure, masks, group.name, [0, 2], Side.CONSUMER)
    masked, smaller, found = collapsed(case.model, structure, masks, inputs)
    assert found.plan.keep == {
        group.name: tuple(unit for unit in range(group.width) if unit not in (0, 2))
        for group in structure.groups
    }
    assert (found.constant_count, found.notes) == (0, ())
    assert error(masked, smaller, inputs) < 1e-12
    assert parameter_count(smaller) < parameter_count(masked)


def parameter_count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("make", MAKES)
def test_what_nothing_makes_goes_and_takes_its_constant_along(make: Callable[[], structures.Case]) -> None:
    case = make()
    structure, (inputs, _) = case.structure, case.batch(2)
    masks = everything(structure)
    first = structure.groups[0].name
    empty(structure, masks, first, [1, 3], Side.PRODUCER)
    masked, smaller, found = collapsed(case.model, structure, masks, inputs)
    assert found.gone == 2
    assert sum(found.constants.values()) == sum(sounding(case, masked, first, (1, 3)))
    without_constants(masked)
    exact = collapse(masked, structure, masks, ((inputs[0][:1],), {}), method="magnitude")
    assert exact.plan.keep == found.plan.keep
    assert exact.constant_count == 0
    assert error(masked, apply_plan(masked, structure, exact.plan), inputs) < 1e-12


def sounding(case: structures.Case, masked: nn.Module, group: str, units: tuple[int, ...]) -> list[bool]:
    """Return whether the output without a unit is another one, by zeroing what reads it."""
    inputs = case.batch(1)[0]
    found = []
    for unit in units:
        masks = everything(case.structure)
        empty(case.structure, masks, group, [unit], Side.CONSUMER)
        found.append(error(masked, with_masks(masked, masks), inputs) > 0)
    return found


def test_a_unit_of_a_stage_stays_while_one_block_makes_it() -> None:
    case = structures.residual()
    masks = everything(case.structure)
    for name in ("stem.weight", "out1.weight"):
        masks[name][2] = False
    assert units_left(case.structure, masks)["stem"].all()
    masks["out2.weight"][2] = False
    assert np.flatnonzero(~units_left(case.structure, masks)["stem"]).tolist() == [2]


def test_a_flattened_unit_goes_with_all_of_its_columns() -> None:
    case = structures.conv_norm()
    masks = everything(case.structure)
    masks["7.weight"][:, 16:31] = False
    assert units_left(case.structure, masks)["3"].all()
    masks["7.weight"][:, 31] = False
    assert units_left(case.structure, masks)["3"].tolist() == [True, False, True, True]


def test_units_go_one_because_of_the_other() -> None:
    case = structures.mlp()
    (inputs, _), masks = case.batch(2), everything(case.structure)
    masks["4.weight"][:, :2] = False  # nothing reads two units of the second layer,
    masks["2.weight"][2:, 4] = False  # which alone read one of the first
    masked, smaller, found = collapsed(case.model, case.structure, masks, inputs)
    assert found.plan.keep == {"0": (0, 1, 2, 3, 5), "2": (2, 3, 4)}
    assert error(masked, smaller, inputs) < 1e-12


def test_an_empty_layer_keeps_a_unit_and_says_so() -> None:
    case = structures.mlp()
    masks = everything(case.structure)
    masks["2.weight"][:] = False
    _, _, found = collapsed(case.model, case.structure, masks, case.batch(2)[0])
    assert found.plan.keep == {"0": (0,), "2": (0,)}
    assert [note.partition(":")[0] for note in found.notes] == ["`0`", "`2`"]
    assert "one of them stays" in found.notes[0]


def test_vectors_that_read_units_count_as_there() -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))  # its memory of a direction is a vector
    model = nn.Sequential(normed, nn.ReLU(), nn.Linear(5, 3)).double().eval()
    inputs = (torch.randn(2, 4, dtype=torch.float64),)
    structure = find_groups(model, inputs)
    masks = everything(structure)
    masks["2.weight"][:, 1] = False  # nothing else reads the unit
    assert all(stays.all() for stays in units_left(structure, masks).values())
    masks["0.parametrizations.weight.original"][1] = False
    assert [stays.tolist() for stays in units_left(structure, masks).values()] == [
        [True, False, True, True, True]
    ]


def test_weights_without_a_mask_are_there() -> None:
    case = structures.mlp()
    masks = everything(case.structure)
    masks["0.weight"][1] = False
    assert not units_left(case.structure, masks)["0"][1]
    assert units_left(case.structure, {"0.weight": torch.ones(6, 4).bool()})["0"].all()
    assert all(stays.all() for stays in units_left(case.structure, {}).values())


def test_the_plan_says_where_it_comes_from() -> None:
    case = structures.mlp()
    found = collapse(
        case.model, case.structure, {}, (case.batch(1)[0], {}), method="snip", seed=3, digests={"a.pt": "ab"}
    )
    plan = found.plan
    assert (plan.method, plan.budget, plan.seed, plan.digests) == ("snip", "collapse", 3, {"a.pt": "ab"})
    assert found.gone == 0
    plan.check(case.structure)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_proven_on_every_network(case: Any) -> None:
    torch.manual_seed(0)
    model = case.build().double().eval()
    inputs = tuple(each.double() if each.is_floating_point() else each for each in case.example(2))
    structure = find_groups(model, inputs)
    masks = {
        name: torch.ones(structure.tensors[name].shape, dtype=torch.bool)
        for name in prunable_weights(model, structure, with_classifier=True)
    }
    for number, group in enumerate(structure.groups):
        members = [member for member in group.members if member.role is Role.WEIGHT]
        if all(member.tensor in masks for member in members) and group.width > 1:
            empty(structure, masks, group.name, [0], Side.PRODUCER if number % 2 else Side.CONSUMER)
    masked, smaller, found = collapsed(model, structure, masks, inputs)
    assert slice_masks(masks, structure, found.plan.kept()).keys() == found.masks.keys()
    with torch.no_grad():
        one, two = masked(*inputs), smaller(*inputs)
    if isinstance(one, Tensor) and not found.constant_count and case.name != "Noise":
        assert torch.allclose(one, two, atol=1e-10), case.name
