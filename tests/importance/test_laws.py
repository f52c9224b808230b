"""What holds for every method, whoever wrote it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.errors import ScoreError
from prunecli.graph.structure import Group
from prunecli.importance import ScoreBN, Scores, methods, score
from prunecli.importance.fold import position_table
from tests.structures import Case, conv_norm, residual

METHODS = tuple(info.name for info in methods())
NOT_ZERO_FOR_ZEROS = {
    "random": "looks at nothing",
    "contribution-inverse": "gives up what matters most first",
    "fpgm": "looks at what tells a unit from others: one of zeros may be the least like them",
    "oracle-combinatorial": "a unit whose removal lowers the loss goes before one that does nothing",
}
ARGUMENTS = {"contribution": {"conv": True}, "contribution-inverse": {"conv": True}}
"""What a method has to be told to score these networks."""
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
EVERY_CASE = pytest.mark.parametrize("make", (conv_norm, residual))


def scored(case: Case, method: str, **options: object) -> Scores:
    batches = [case.batch(seed=1), case.batch(seed=2)]
    options = {"micro_batch": 4, "method_args": ARGUMENTS.get(method), **options}
    return score(case.model, case.structure, batches, cross_entropy, [method], **options)[method]


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Return everything of a model that scoring must leave as it is, bit for bit."""
    found: dict[str, object] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    found["numpy"] = str(np.random.get_state())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = tensor.detach().clone()
        found[f"{name} is"] = (id(tensor), tensor.requires_grad, id(tensor.grad))
        found[f"{name} gradient"] = None if tensor.grad is None else tensor.grad.clone()
    for name, module in model.named_modules():
        hooks = [dict(value) for key, value in vars(module).items() if key.endswith("_hooks")]
        found[f"{name} module"] = (module.training, hooks, sorted(vars(module)))
    return found


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def lived_in(case: Case) -> Case:
    """Give the model what users' models have: gradients, frozen parameters, mixed modes, hooks."""
    first, *_, last = case.model.parameters()
    first.grad, last.requires_grad = torch.ones_like(first), False
    case.model.train()
    next(case.model.children()).eval()
    case.model.register_forward_hook(lambda module, args, output: None)
    return case


class Failing(nn.Module):
    """A last layer that fails, once it has changed what it can."""

    def forward(self, x: Tensor) -> Tensor:
        self.cache = x
        torch.rand(3), random.random(), np.random.rand()
        raise RuntimeError("out of luck")


@EVERY_METHOD
@EVERY_CASE
def test_scores_are_finite_and_one_per_unit(method: str, make: Callable[[], Case]) -> None:
    case = make()
    found = scored(case, method).by_group
    assert list(found) == [group.name for group in case.structure.groups]
    for group in case.structure.groups:
        assert found[group.name].shape == (group.width,)
        assert found[group.name].dtype == torch.float64
        assert found[group.name].isfinite().all()


@EVERY_METHOD
@pytest.mark.parametrize("score_bn", tuple(ScoreBN))
def test_scoring_leaves_no_trace(method: str, score_bn: ScoreBN) -> None:
    case = lived_in(conv_norm())
    before = fingerprint(case.model)
    with torch.no_grad():
        scored(case, method, score_bn=score_bn)
    assert_same(fingerprint(case.model), before)


@EVERY_METHOD
def test_a_failing_forward_leaves_no_trace(method: str) -> None:
    case = lived_in(conv_norm())
    case.model.append(Failing())
    before = fingerprint(case.model)
    if {info.name: info for info in methods()}[method].needs_data:
        with pytest.raises(ScoreError, match=r"Micro-batch 0 \(inputs \[4, 2, 4, 4\]\).*out of luck"):
            scored(case, method, score_bn=ScoreBN.TRAIN)
    else:
        scored(case, method)
    assert_same(fingerprint(case.model), before)


@EVERY_METHOD
@EVERY_CASE
def test_the_same_seed_gives_the_same_scores(method: str, make: Callable[[], Case]) -> None:
    case = make()
    first, second = scored(case, method, seed=3), scored(case, method, seed=3)
    assert first.to_bytes() == second.to_bytes()


@pytest.mark.parametrize("method", tuple(name for name in METHODS if name != "random"))
@EVERY_CASE
def test_permuting_units_permutes_scores(method: str, make: Callable[[], Case]) -> None:
    case, permuted = make(), make()
    orders = {
        group.name: torch.randperm(group.width, generator=torch.Generator().manual_seed(group.width))
        for group in case.structure.groups
    }
    for group in permuted.structure.groups:
        permute(permuted.model, group, orders[group.name])
    (inputs,), _ = case.batch()
    torch.testing.assert_close(permuted.model(inputs), case.model(inputs))  # it is the same function
    before, after = scored(case, method).by_group, scored(permuted, method).by_group
    for name, order in orders.items():
        torch.testing.assert_close(after[name], before[name][order], rtol=1e-9, atol=0)


def permute(model: nn.Module, group: Group, order: Tensor) -> None:
    """Reorder the units of a group in the model: unit i becomes what unit order[i] was."""
    for member in group.members:
        tensor = tensor_of(model, member.tensor).data
        table = torch.from_numpy(position_table(member, group.width, tensor.shape[member.dim]))
        source = torch.arange(tensor.shape[member.dim])
        source[table.flatten()] = table[order].flatten()
        tensor.copy_(tensor.index_select(member.dim, source))


def tensor_of(model: nn.Module, name: str) -> Tensor:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]


@EVERY_METHOD
def test_frozen_parameters_are_scored_as_well(method: str) -> None:
    case, frozen = residual(), residual()
    frozen.model.requires_grad_(False)
    assert scored(case, method).to_bytes() == scored(frozen, method).to_bytes()


@pytest.mark.parametrize("method", tuple(name for name in METHODS if name not in NOT_ZERO_FOR_ZEROS))
def test_a_unit_that_does_nothing_scores_lowest(method: str) -> None:
    case = conv_norm()
    for member in case.structure.groups[0].producers:
        with torch.no_grad():
            tensor_of(case.model, member.tensor)[2] = "running_var" in member.tensor
    assert int(scored(case, method).by_group["0"].argmin()) == 2


@EVERY_METHOD
def test_scores_do_not_depend_on_how_the_sample_comes_in_batches(method: str) -> None:
    case = conv_norm()
    (inputs,), targets = case.batch(10)
    whole = [((inputs,), targets)]
    parts = [((inputs[a:b],), targets[a:b]) for a, b in ((0, 3), (3, 4), (4, 10))]
    options = {"micro_batch": 4, "method_args": ARGUMENTS.get(method)}
    one, other = (
        score(case.model, case.structure, batches, cross_entropy, [method], **options)[method]
        for batches in (whole, parts)
    )
    assert one.to_bytes() == other.to_bytes()


@EVERY_METHOD
def test_the_order_of_groups_does_not_matter(method: str) -> None:
    case = residual()
    turned = replace(case, structure=replace(case.structure, groups=case.structure.groups[::-1]))
    one, other = scored(case, method).by_group, scored(turned, method).by_group
    for name, values in one.items():
        assert torch.equal(values, other[name])
