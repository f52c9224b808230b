"""What holds for every method that scores weights, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunecli.errors import ScoreError
from prunecli.importance import Granularity, ScoreBN, find_method, methods
from prunecli.plan import Scope
from prunecli.weights import (
    Lender,
    RatioBase,
    Sample,
    Selection,
    WeightBudget,
    WeightScores,
    choose_masks,
    score_weights,
)
from tests.importance.test_laws import Failing, assert_same, fingerprint, lived_in
from tests.structures import Case, conv_norm, residual
from tests.weights.lent import lend, samples

METHODS = tuple(info.name for info in methods(Granularity.WEIGHT))
ARGUMENTS: dict[str, dict[str, Any]] = {"grasp": {"per_class": 0}, "synflow": {"steps": 3}}
"""What a method has to be told to be quick, and to score few samples."""
IN_TRAIN_MODE: dict[str, dict[str, Any]] = {"obd": {"hessian": "hutchinson"}}
"""What it has to be told where samples influence each other."""
BY_HAND = tuple(name for name in METHODS if name not in ("random", "grasp"))
"""Not chance, and not what looks at the gradient's size, which a weight that matters may well lower."""
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
EVERY_CASE = pytest.mark.parametrize("make", (conv_norm, residual))
RUN_WITHOUT = ("lap", "synflow")
"""These run the network too, on an input of their own."""
NEED_DATA = tuple(name for name in METHODS if find_method(name, Granularity.WEIGHT).needs_data)


def lent(case: Case, method: str, **options: Any) -> Lender:
    example = torch.zeros(1, *case.shape, dtype=torch.float64)
    batches = [case.batch(seed=1), case.batch(seed=2)]
    names = tuple(
        name
        for name, module in ((f"{each}.weight", module) for each, module in case.model.named_modules())
        if isinstance(module, (nn.Conv2d, nn.Linear))
    )
    sample = Sample(batches, cross_entropy, 4)
    mixed = options.get("score_bn") is ScoreBN.TRAIN
    arguments = {**ARGUMENTS.get(method, {}), **(IN_TRAIN_MODE.get(method, {}) if mixed else {})}
    return Lender(case.model, case.structure, ((example,), {}), names, method, arguments, sample, **options)


def scored(case: Case, method: str, **options: Any) -> WeightScores:
    return score_weights(lent(case, method, **options))[0]


@EVERY_METHOD
@EVERY_CASE
@pytest.mark.parametrize("score_bn", tuple(ScoreBN))
def test_scores_are_finite_and_one_per_weight(
    method: str, make: Callable[[], Case], score_bn: ScoreBN
) -> None:
    case = make()
    found = scored(case, method, score_bn=score_bn)
    assert list(found) == list(lent(case, method).names)
    for name, scores in found.items():
        assert scores.shape == case.model.get_parameter(name).shape
        assert scores.isfinite().all()
        assert not scores.requires_grad


@EVERY_METHOD
@pytest.mark.parametrize("score_bn", tuple(ScoreBN))
def test_masking_leaves_no_trace(method: str, score_bn: ScoreBN) -> None:
    case = lived_in(conv_norm())
    before = fingerprint(case.model)
    with torch.no_grad():
        choose_masks(lent(case, method, score_bn=score_bn), WeightBudget(Fraction(2)))
    assert_same(fingerprint(case.model), before)


@EVERY_METHOD
def test_a_failing_forward_leaves_no_trace(method: str) -> None:
    case = lived_in(conv_norm())
    case.model.append(Failing())
    before = fingerprint(case.model)
    if method in (*NEED_DATA, *RUN_WITHOUT):
        with pytest.raises(ScoreError, match="out of luck"):
            scored(case, method, score_bn=ScoreBN.TRAIN)
    else:
        scored(case, method)
    assert_same(fingerprint(case.model), before)


@EVERY_METHOD
@EVERY_CASE
def test_the_same_seed_gives_the_same_scores(method: str, make: Callable[[], Case]) -> None:
    case = make()
    first, second = scored(case, method, seed=3), scored(case, method, seed=3)
    assert all(torch.equal(first[name], second[name]) for name in first)


@EVERY_METHOD
@pytest.mark.parametrize("scope", tuple(Scope))
def test_exactly_so_many_stay_and_none_comes_back(method: str, scope: Scope) -> None:
    case = conv_norm()
    lender = lent(case, method)
    first = choose_masks(lender, WeightBudget(Fraction(2), RatioBase.PRUNABLE), Selection(scope))
    assert first.kept == first.count == lender.prunable // 2
    for name, mask in first.masks.items():
        case.model.get_parameter(name).data.mul_(mask)
    again = choose_masks(
        replace(lender, masks=first.masks), WeightBudget(Fraction(4), RatioBase.PRUNABLE), Selection(scope)
    )
    assert again.kept == again.count
    assert not any((mask & ~first.masks[name]).any() for name, mask in again.masks.items())


@pytest.mark.parametrize("method", BY_HAND)
def test_what_matters_scores_high(method: str) -> None:
    """The first input passes through the first unit to the first class; all else is faint."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    for layer in (model[0], model[2]):
        layer.weight.data.fill_(0.01)
        layer.weight.data[0, 0] = 1.0
    (inputs,), labels = samples((4,), 40, 2)
    lender = lend(
        model, torch.zeros(1, 4).double(), method, [((inputs.abs(),), labels)], ARGUMENTS.get(method)
    )
    for name, scores in score_weights(lender)[0].items():
        assert scores[0, 0] >= scores.max() * (1 - 1e-9), name  # two classes may answer alike
        assert scores[0, 0] > scores[-1, -1]
