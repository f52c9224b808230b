"""Every kind of network: the groups expected by hand, and a cut that is proven."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunecli.errors import ProofError, TraceError
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Axis, Group, Member, Structure
from prunecli.parity import relative_error, verify
from prunecli.surgery import apply_plan

from .cutting import prune_and_prove, random_plan, shake
from .nets import BY_NAME, CASES, Case


@pytest.fixture(params=CASES, ids=lambda each: each.name)
def each(request: pytest.FixtureRequest) -> Case:
    """Every small network."""
    torch.manual_seed(0)
    return request.param


def test_finds_the_groups_expected_by_hand(each: Case) -> None:
    structure = find_groups(each.build().eval(), each.example(1))
    assert sorted(group.width for group in structure.groups) == list(each.groups)
    assert each.frozen in " ".join(f"{frozen.reason} {frozen.op}" for frozen in structure.frozen)


def test_cut_equals_the_masked_dense_model(each: Case) -> None:
    model = shake(each.build())
    structure, pruned, parity = prune_and_prove(model, each.example(2))
    assert parity.structure_error <= (1e-9 if each.name != "Scripted" else 1e-5)
    assert parity.numbers_error <= 1e-5
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned))
    assert after < before or not each.groups
    assert parity.structure_dtype == "float64" or each.name == "Scripted"


def test_planned_cost_is_the_cost_of_the_cut_model(each: Case) -> None:
    model = each.build().eval()
    structure = find_groups(model, each.example(1))
    plan = random_plan(structure)
    pruned = apply_plan(model, structure, plan)
    again = find_groups(pruned, each.example(1))
    assert structure.parameter_count(plan.kept()) == sum(p.numel() for p in pruned.parameters())
    assert structure.macs(plan.kept()) == again.macs({})


def test_model_is_untouched(each: Case) -> None:
    model = shake(each.build()).train()
    model.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    prune_and_prove(model, each.example(2))
    torch.set_rng_state(state)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [module.training for module in model.modules()]
    assert hooks == [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_keeping_everything_is_the_identity(each: Case) -> None:
    model = shake(each.build())
    example = each.example(2)
    structure = find_groups(model, each.example(1))
    plan = random_plan(structure)
    whole = type(plan)(
        {name: tuple(range(width)) for name, width in plan.widths.items()}, plan.widths, "random"
    )
    same = apply_plan(model, structure, whole)
    with torch.no_grad():
        torch.manual_seed(0)
        before = model(*example)
        torch.manual_seed(0)
        assert relative_error(same(*example), before) <= 1e-6


def test_a_wrong_group_is_caught() -> None:
    """Negative control: one kept column swapped in one consumer."""
    case = BY_NAME["Residual"]
    model, example = shake(case.build()), case.example(2)
    structure = find_groups(model, case.example(1))
    plan = random_plan(structure)
    pruned = apply_plan(model, structure, plan)
    weight = pruned.get_submodule("3.conv1").weight
    with torch.no_grad():
        weight[:, [0, 1]] = weight[:, [1, 0]].clone()
    with pytest.raises(ProofError, match=r"3.conv1.weight.*not the part"):
        verify(model, pruned, structure, plan, example)


@pytest.mark.parametrize("name", ("Residual", "Dense", "Grouped", "ViewAttention", "FlattenToLinear"))
def test_a_wrong_structure_is_caught(name: str) -> None:
    """Negative control: the labels of one consumer are rolled by one, in the cut and in the mask alike."""
    case = BY_NAME[name]
    model, example = shake(case.build()), case.example(2)
    structure = find_groups(model, case.example(1))
    plan = random_plan(structure)
    group = next(group for group in structure.groups if group.consumers)
    wrong = with_rolled_axis(structure, group.consumers[0], group)
    with pytest.raises(ProofError):
        verify(model, apply_plan(model, wrong, plan), wrong, plan, example)


def with_rolled_axis(structure: Structure, member: Member, group: Group) -> Structure:
    """Return the structure with the units along one dimension of one tensor shifted by one."""
    tensor = structure.tensors[member.tensor]
    axis = tensor.axes[member.dim]
    owners = [
        replace(owner, units=(owner.units + 1) % group.width) if owner.group == group.name else owner
        for owner in axis.owners
    ]
    axes = list(tensor.axes)
    axes[member.dim] = Axis(axis.length, tuple(owners))
    return replace(structure, tensors={**structure.tensors, member.tensor: replace(tensor, axes=tuple(axes))})


def test_auxiliary_heads_are_cut_with_the_rest() -> None:
    case = BY_NAME["AuxiliaryHead"]
    model = shake(case.build())
    structure, pruned, _ = prune_and_prove(model, case.example(2))
    assert structure.follows_training
    logits, auxiliary = pruned.train()(*case.example(2))
    assert logits.shape == auxiliary.shape == (2, 5)


def test_a_forward_that_fails_is_one_clear_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(TraceError, match=r"forward pass of `Sequential` failed.*\[1, 5\].*check the input"):
        find_groups(model, (torch.zeros(1, 5),))


def test_padding_keeps_the_padded_positions() -> None:
    """Six channels follow the stem; the six that were padded with zeros can never go."""
    structure = find_groups(BY_NAME["Padding"].build().eval(), BY_NAME["Padding"].example(1))
    axis = structure.tensors["body.weight"].axes[0]
    assert axis is not None
    owned = sorted(int(p) for owner in axis.owners for p in owner.positions)
    assert owned == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("name", "changes"),
    (("LayerNorm", True), ("ChannelAttention", True), ("WeightStandardisation", True), ("ConvBn", False)),
)
def test_statistics_over_units_are_reported(name: str, changes: bool) -> None:
    structure = find_groups(BY_NAME[name].build().eval(), BY_NAME[name].example(1))
    assert any(group.changes_statistics for group in structure.groups) is changes
