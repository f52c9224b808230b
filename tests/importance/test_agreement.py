"""Agreement of scores against SciPy, called directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunecli.errors import InputError
from prunecli.importance import About, Coefficients, Scores, agreement

Groups = dict[str, list[float]]


def scores(groups: Groups, method: str = "magnitude") -> Scores:
    return Scores(About(method), {name: torch.tensor(v, dtype=torch.float64) for name, v in groups.items()})


def by_scipy(left: list[float], right: list[float]) -> tuple[float, float, float]:
    functions = (stats.pearsonr, stats.spearmanr, stats.kendalltau)
    return tuple(float(function(left, right).statistic) for function in functions)  # type: ignore[return-value]


def three(found: Coefficients) -> tuple[float | None, float | None, float | None]:
    return found.pearson, found.spearman, found.kendall


def test_means_over_layers_and_all_units_together_with_ties_and_a_constant_layer() -> None:
    left = {"a": [1.0, 2, 2, 5], "b": [3.0, 3, 3], "c": [0.5, 0.25, 8], "d": [1.0]}
    right = {"a": [2.0, 2, 1, 9], "b": [1.0, 2, 3], "c": [7.0, 1, 1], "d": [4.0]}
    found = agreement(scores(left), scores(right, "oracle"))
    each = [by_scipy(left[name], right[name]) for name in ("a", "c")]
    assert three(found.per_layer) == pytest.approx(np.mean(each, axis=0))
    together = by_scipy([x for v in left.values() for x in v], [x for v in right.values() for x in v])
    assert three(found.all_layers) == pytest.approx(together)
    assert (found.constant, found.layers, found.units) == (("b", "d"), 4, 11)
    assert (found.method, found.against) == ("magnitude", "oracle")


VALUES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=8)


@given(st.lists(VALUES.flatmap(lambda v: st.tuples(st.just(v), st.permutations(v))), min_size=1, max_size=4))
def test_agrees_with_scipy_on_any_scores(layers: list[tuple[list[float], list[float]]]) -> None:
    left = {str(number): first for number, (first, _) in enumerate(layers)}
    right = {str(number): second for number, (_, second) in enumerate(layers)}
    found = agreement(scores(left), scores(right))
    varied = [name for name in left if len(set(left[name])) > 1]
    assert found.constant == tuple(name for name in left if name not in varied)
    if varied:
        each = [by_scipy(left[name], right[name]) for name in varied]
        assert three(found.per_layer) == pytest.approx(tuple(np.mean(each, axis=0)))
    else:
        assert three(found.per_layer) == (None, None, None)


def test_signed_scores_are_squared() -> None:
    found = agreement(scores({"a": [-3.0, 1, 2]}, "obd"), scores({"a": [9.0, 1, 4]}))
    assert three(found.per_layer) == pytest.approx((1, 1, 1))


def test_the_same_scores_agree_and_opposite_ones_do_not() -> None:
    values = {"a": [1.0, 2, 4], "b": [5.0, 3, 4]}
    assert three(agreement(scores(values), scores(values)).all_layers) == pytest.approx((1, 1, 1))
    turned = {name: [-value for value in row] for name, row in values.items()}
    assert three(agreement(scores(values), scores(turned)).per_layer) == pytest.approx((-1, -1, -1))


def test_scores_of_other_units_are_refused() -> None:
    with pytest.raises(InputError, match="`magnitude` and `oracle` scored different units: score again"):
        agreement(scores({"a": [1.0, 2]}), scores({"a": [1.0, 2, 3]}, "oracle"))
