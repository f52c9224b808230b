"""Twins of torchvision's attention: they equal what they stand for, and all of it can be cut."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from prunecli.costs import measure_costs
from prunecli.graph.cutting import attribute_values
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Structure
from prunecli.graph.twins import find_rewritable, install, installed, sizes_of
from prunecli.surgery import apply_plan
from tests.graph.cutting import prune_and_prove, random_plan, shake
from tests.vision import ALL, SIZE, maxvit, swin, swin_v2

Build = Callable[[], nn.Module]
UNITS = {
    swin: {"qkv": [4, 4, 8, 8], "qkv~2": [6, 6, 6, 6]},
    swin_v2: {"qkv": [2, 2, 6, 6], "qkv~2": [12, 12, 8, 8]},
    maxvit: {"to_qkv": [2, 2, 4, 4], "to_qkv~2": [8, 8, 8, 8]},
}
"""Network -> heads and size of a head, layer by layer."""


def share_in_groups(structure: Structure) -> float:
    sizes = {name: math.prod(tensor.shape) for name, tensor in structure.parameters()}
    cut = {name for name, tensor in structure.parameters() if any(tensor.axes)}
    return sum(sizes[name] for name in cut) / sum(sizes.values())


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_at_least_nine_tenths_can_be_cut_and_the_cut_is_right(build: Build) -> None:
    torch.manual_seed(0)
    structure, pruned, parity = prune_and_prove(shake(build()), (torch.randn(2, 3, SIZE, SIZE),))
    assert share_in_groups(structure) >= 0.9
    assert parity.structure_dtype == "float64"
    assert parity.structure_error <= 1e-9
    assert parity.numbers_error <= 1e-5
    assert pruned(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 5)


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_planned_macs_are_those_of_the_networks(build: Build) -> None:
    model, example = build(), (torch.zeros(1, 3, SIZE, SIZE),)
    structure = find_groups(model, example)
    plan = random_plan(structure)
    for network, kept in ((model, {}), (apply_plan(model, structure, plan), plan.kept())):
        costs = measure_costs(network, example)
        assert costs.macs == structure.macs(kept)
        assert costs.params == structure.parameter_count(kept)
        assert costs.not_counted == ()


@pytest.mark.parametrize("build", UNITS, ids=lambda build: build.__name__)
def test_heads_and_their_sizes_are_groups_of_each_layer(build: Build) -> None:
    groups = find_groups(build(), (torch.zeros(1, 3, SIZE, SIZE),)).groups
    for leaf, widths in UNITS[build].items():
        assert [group.width for group in groups if group.name.endswith(leaf)] == widths


@pytest.mark.parametrize(
    ("build", "heads"), ((swin, "num_heads"), (swin_v2, "num_heads"), (maxvit, "n_heads"))
)
def test_no_other_number_follows_the_heads(build: Build, heads: str) -> None:
    """A window may be as wide as there are heads; it does not shrink with them."""
    model = build()
    structure = find_groups(model, (torch.zeros(1, 3, SIZE, SIZE),))
    values = attribute_values(structure, random_plan(structure).kept(), model)
    for name in structure.rewritten:
        assert values[name].keys() <= {heads, "head_dim"}
    assert any(heads in values[name] for name in structure.rewritten)


def shifted(cls: type[nn.Module], shift: list[int], **options: bool) -> nn.Module:
    return cls(12, [3, 4], shift, 2, attention_dropout=0.25, dropout=0.25, **options)


DENSE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "swin": (lambda: shifted(ShiftedWindowAttention, [0, 0]), (2, 6, 8, 12)),
    "shifted": (lambda: shifted(ShiftedWindowAttention, [1, 2]), (2, 6, 8, 12)),
    "padded": (lambda: shifted(ShiftedWindowAttention, [1, 2]), (2, 7, 5, 12)),
    "one window high": (lambda: shifted(ShiftedWindowAttention, [1, 2]), (2, 2, 9, 12)),
    "one shift": (lambda: shifted(ShiftedWindowAttention, [0, 2]), (2, 6, 8, 12)),
    "no bias": (
        lambda: shifted(ShiftedWindowAttention, [1, 2], qkv_bias=False, proj_bias=False),
        (2, 6, 8, 12),
    ),
    "v2": (lambda: shifted(ShiftedWindowAttentionV2, [1, 2]), (2, 7, 5, 12)),
    "v2 no bias": (lambda: shifted(ShiftedWindowAttentionV2, [0, 0], qkv_bias=False), (2, 6, 8, 12)),
    "maxvit": (lambda: RelativePositionalMultiHeadAttention(12, 4, 9), (2, 5, 9, 12)),
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("training", (False, True))
def test_a_twin_is_its_original(name: str, training: bool) -> None:
    """Outputs and gradients, with dropout and without; afterwards the module is what it was."""
    build, shape = DENSE[name]
    torch.manual_seed(0)
    model = nn.Sequential(shake(build())).double().train(training)
    inputs = torch.randn(shape, dtype=torch.float64)
    before, own = dict(vars(model[0])), type(model[0])
    expected = outcome(model, inputs)
    with installed(model, find_rewritable(model)):
        assert type(model[0]).__name__ == f"Sized{own.__name__}"
        found = outcome(model, inputs)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert type(model[0]) is own
    assert vars(model[0]) == before


def outcome(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    output = model(inputs)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)
    return [output, *(torch.zeros(()) if each is None else each for each in gradients)]


def test_the_scale_stays_that_of_the_dense_head() -> None:
    attention = shifted(ShiftedWindowAttention, [0, 0])
    model = nn.Sequential(attention)
    install(model, find_rewritable(model))
    attention.head_dim = 3
    assert attention.scale == 6**-0.5
    assert sizes_of(attention) == ("num_heads", "head_dim")
    assert sizes_of(nn.Linear(2, 2)) is None


def test_a_class_of_one_s_own_has_no_twin() -> None:
    """Its code may do something else."""

    class Mine(ShiftedWindowAttention):
        pass

    assert find_rewritable(nn.Sequential(shifted(Mine, [0, 0]))) == {}
