"""Groups that a method refuses are scored by another, and the scores say so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunecli.errors import DataError, ScoreError, UsageError
from prunecli.graph.structure import Group
from prunecli.importance import Scores, score
from tests.structures import Case, layer, member, mlp, norm, reader, residual, structure_of


def half_normalised() -> Case:
    """Return three linear layers: behind the first stands a norm, behind the second none."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    groups = [
        Group("3", 5, (*layer("3", 5, gated=True), *reader("5", 5))),
        Group("0", 6, (*layer("0", 6, gated=False), *norm("1", 6), *reader("3", 6))),
    ]
    return Case("half_normalised", model.eval(), structure_of(model, groups), (4,), 3)


def scored(
    case: Case, methods: list[str], fallback: str | None = None, **options: object
) -> dict[str, Scores]:
    return score(
        case.model, case.structure, [case.batch(seed=1), case.batch(seed=2)], cross_entropy, methods,
        fallback=fallback, micro_batch=4, **options,
    )  # fmt: skip


PAIRS = (
    ("bn-scale", "magnitude"),
    ("bn-scale", "taylor-fo"),
    ("bn-scale-taylor", "magnitude"),
    ("bn-scale-taylor", "taylor-fo"),
)


@pytest.mark.parametrize(("method", "fallback"), PAIRS)
def test_each_group_is_scored_by_who_can(method: str, fallback: str) -> None:
    case = half_normalised()
    found = scored(case, [method], fallback)[method]
    normalised = Case("", case.model, structure_of(case.model, case.structure.groups[1:]), (4,), 3)
    own, other = scored(normalised, [method])[method], scored(case, [fallback])[fallback]
    assert list(found.by_group) == ["3", "0"]
    assert torch.equal(found.by_group["0"], own.by_group["0"])
    assert torch.equal(found.by_group["3"], other.by_group["3"])


@pytest.mark.parametrize(("method", "fallback"), PAIRS)
def test_the_scores_say_so(method: str, fallback: str) -> None:
    about = scored(half_normalised(), [method], fallback)[method].about
    assert about.method == method
    assert about.fallbacks == {"3": fallback}
    assert about.samples == (0 if (method, fallback) == PAIRS[0] else 12)
    assert about.notes == (
        f"`{method}` cannot score 1 of 2 groups (`3`): scored by `{fallback}`. The numbers of two methods do "
        "not compare: rank within layers (`--scope layer`).",
    )


def test_arguments_reach_both() -> None:
    about = scored(half_normalised(), ["bn-scale-taylor"], "magnitude", method_args={"bias": "true"})
    assert about["bn-scale-taylor"].about.arguments == {"bias": True, "missing_bn": "error"}
    about = scored(half_normalised(), ["bn-scale"], "bn-scale-taylor", method_args={"missing_bn": "gate"})
    assert about["bn-scale"].about.arguments == {}


def test_a_fallback_may_be_asked_for_as_well() -> None:
    case = half_normalised()
    found = scored(case, ["magnitude", "bn-scale", "taylor-fo"], "magnitude")
    assert list(found) == ["magnitude", "bn-scale", "taylor-fo"]
    assert torch.equal(found["bn-scale"].by_group["3"], found["magnitude"].by_group["3"])
    for name in ("magnitude", "taylor-fo"):
        assert found[name].to_bytes() == scored(case, [name])[name].to_bytes()


def test_a_fallback_that_is_not_needed_does_nothing() -> None:
    case = residual()
    alone = score(case.model, case.structure, methods=["bn-scale"])["bn-scale"]
    # Not even samples are read for it.
    found = score(case.model, case.structure, methods=["bn-scale"], fallback="taylor-fo")["bn-scale"]
    assert found.to_bytes() == alone.to_bytes()


def test_without_one_the_refusal_names_the_option() -> None:
    with pytest.raises(ScoreError, match="`bn-scale` cannot score `3`, which .* with `--fallback`"):
        scored(half_normalised(), ["bn-scale"])
    with pytest.raises(ScoreError, match="`bn-scale` cannot score `3`, which .* with `--fallback`"):
        scored(half_normalised(), ["magnitude", "bn-scale"], "bn-scale")


def test_a_fallback_that_refuses_too_is_named_beside_the_method() -> None:
    case = half_normalised()
    lone = Group("lone", 5, (member("3.bias", 0, "other", "producer", 5),))
    both = Case("", case.model, structure_of(case.model, [lone, case.structure.groups[1]]), (4,), 3)
    message = (
        "`bn-scale` cannot score `lone`, which has no normalisation .*; "
        "nor can the fallback `magnitude`: it has no weights"
    )
    with pytest.raises(ScoreError, match=message):
        scored(both, ["bn-scale"], "magnitude")


def test_a_method_that_can_score_nothing_is_refused_all_the_same() -> None:
    with pytest.raises(ScoreError, match="that is all there are. Choose `--method magnitude`,"):
        scored(mlp(), ["bn-scale"], "magnitude")


def test_a_fallback_is_checked_like_a_method() -> None:
    case = half_normalised()
    with pytest.raises(UsageError, match="no method `magnitud`. Did you mean `magnitude`"):
        scored(case, ["bn-scale"], "magnitud")
    with pytest.raises(DataError, match="`taylor-fo`"):
        score(case.model, case.structure, methods=["bn-scale"], fallback="taylor-fo")
