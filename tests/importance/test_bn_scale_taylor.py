"""`bn-scale-taylor` against a twin, the identity with `taylor-fo`, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prunecli.errors import ScoreError
from prunecli.graph.structure import Group
from prunecli.importance import ScoreBN, score
from tests.importance.test_taylor_fo import GATED_AFTER, assert_close
from tests.structures import Case, conv_norm, layer, mlp, norm, reader, residual, structure_of

Batches = list[tuple[tuple[Tensor], Tensor]]


def batches_of(case: Case) -> Batches:
    return [case.batch(8, seed=1), case.batch(8, seed=2), case.batch(3, seed=3)]


def twin(case: Case, batches: Batches, bias: bool) -> dict[str, Tensor]:
    """Return the mean over t of (sum over norms of gamma dE/dgamma [+ beta dE/dbeta])^2."""
    scores = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in case.structure.groups}
    for (inputs,), targets in batches:
        loss = cross_entropy(case.model(inputs), targets)
        for name, norms in GATED_AFTER[case.name].items():
            for unit in range(len(scores[name])):
                change = 0.0
                for each in norms:
                    change += product(loss, case.model.get_submodule(each).weight, unit)
                    change += product(loss, case.model.get_submodule(each).bias, unit) if bias else 0.0
                scores[name][unit] += change**2 / len(batches)
    return scores


def product(loss: Tensor, parameter: Tensor, unit: int) -> float:
    (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    return parameter[unit].item() * gradient[unit].item()


@pytest.mark.parametrize("make", (conv_norm, residual))
@pytest.mark.parametrize("score_bn", tuple(ScoreBN))
@pytest.mark.parametrize("bias", (False, True))
def test_agrees_with_plain_loops(make: Callable[[], Case], score_bn: ScoreBN, bias: bool) -> None:
    case, method = make(), "bn-scale-taylor"
    found = score(
        case.model,
        case.structure,
        batches_of(case),
        cross_entropy,
        [method],
        micro_batch=8,
        score_bn=score_bn,
        method_args={"bias": str(bias)},
    )[method]
    assert found.about.arguments["bias"] is bias
    case.model.train(score_bn is ScoreBN.TRAIN)
    assert_close(found.by_group, twin(case, batches_of(case), bias))


@pytest.mark.parametrize("make", (conv_norm, residual))
def test_with_the_bias_it_is_taylor_fo(make: Callable[[], Case]) -> None:
    case = make()
    names, arguments = ["bn-scale-taylor", "taylor-fo"], {"bias": "true"}
    found = score(case.model, case.structure, batches_of(case), cross_entropy, names, method_args=arguments)
    assert_close(found["bn-scale-taylor"].by_group, found["taylor-fo"].by_group)


@pytest.mark.parametrize("bias", ("true", "false"))
def test_the_gate_takes_the_place_of_a_missing_norm(bias: str) -> None:
    case = mlp()
    names, arguments = ["bn-scale-taylor", "taylor-fo"], {"missing_bn": "gate", "bias": bias}
    found = score(case.model, case.structure, batches_of(case), cross_entropy, names, method_args=arguments)
    assert_close(found["bn-scale-taylor"].by_group, found["taylor-fo"].by_group)


def test_refuses_units_without_normalisation_by_name() -> None:
    case = mlp()
    message = r"`bn-scale-taylor` cannot score `0`, which has a layer without .*missing_bn=gate.*more: `2`"
    with pytest.raises(ScoreError, match=message):
        score(case.model, case.structure, batches_of(case), cross_entropy, ["bn-scale-taylor"])


def test_refuses_units_that_only_some_of_their_layers_normalise() -> None:
    case = conv_norm()
    members = (*layer("0", 5, gated=True, bias=False), *norm("1", 5), *reader("3", 5))
    structure = structure_of(case.model, [Group("0", 5, members)])
    with pytest.raises(ScoreError, match="cannot score `0`, which has a layer without a normalisation"):
        score(case.model, structure, batches_of(case), cross_entropy, ["bn-scale-taylor"])


def test_refuses_units_that_have_no_gate() -> None:
    case = mlp()
    lone = Group("0", 6, tuple(layer("0", 6, gated=False)))
    with pytest.raises(ScoreError, match="cannot score `0`, which has no parameter from which"):
        score(
            case.model,
            structure_of(case.model, [lone]),
            batches_of(case),
            cross_entropy,
            ["bn-scale-taylor"],
            method_args={"missing_bn": "gate"},
        )
