"""Least squares: against NumPy, by optimality, and behind a ReLU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from prunecli.recovery.regression import Fit, Problem, error_of, solve


def problem_of(
    groups: int = 1, rows: int = 200, columns: int = 5, outputs: int = 3, *, extra: bool = False,
    rectified: bool = False, intercept: bool = True, seed: int = 0,
) -> tuple[Problem, Fit]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(groups, rows, columns) + 1
    target = (
        inputs @ draw(groups, columns, outputs) + draw(groups, 1, outputs) + 0.3 * draw(groups, rows, outputs)
    )
    more = draw(groups, rows, outputs) if extra else None
    start = draw(groups, outputs, columns)
    return Problem(inputs, target, more, rectified, intercept), Fit(start, draw(groups, outputs), 0.0)


def naive(problem: Problem, start: Fit, ridge: float, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Solve by NumPy, with rows for the ridge and a column for the intercept."""
    inputs = problem.inputs[group].numpy()
    wanted = problem.target[group].numpy()
    if problem.extra is not None:
        wanted = wanted - problem.extra[group].numpy()
    centre = inputs.mean(0) if problem.has_intercept else np.zeros(inputs.shape[1])
    pull = ridge * ((inputs - centre) ** 2).sum(0).mean()
    rows = np.concatenate([inputs - centre, np.sqrt(pull) * np.eye(inputs.shape[1])])
    middle = wanted.mean(0) if problem.has_intercept else 0.0
    right = np.concatenate([wanted - middle, np.sqrt(pull) * start.weight[group].numpy().T])
    weight = np.linalg.lstsq(rows, right, rcond=None)[0].T
    return weight, middle - weight @ centre if problem.has_intercept else np.zeros(len(weight))


@pytest.mark.parametrize("ridge", (1e-3, 1.0))
@pytest.mark.parametrize("intercept", (True, False))
@pytest.mark.parametrize("extra", (True, False))
@pytest.mark.parametrize("groups", (1, 3))
def test_agrees_with_numpy(groups: int, extra: bool, intercept: bool, ridge: float) -> None:
    problem, start = problem_of(groups, extra=extra, intercept=intercept)
    found = solve(problem, start, ridge)
    assert found is not None
    for group in range(groups):
        weight, bias = naive(problem, start, ridge, group)
        np.testing.assert_allclose(found.weight[group], weight, rtol=1e-8)
        np.testing.assert_allclose(found.intercept[group], bias, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("intercept", (True, False))
def test_fewer_rows_than_columns_are_the_same_problem(intercept: bool) -> None:
    problem, start = problem_of(2, rows=6, columns=11, intercept=intercept)
    assert problem.has_few_rows
    found = solve(problem, start, 1e-2)
    assert found is not None
    for group in range(2):
        weight, bias = naive(problem, start, 1e-2, group)
        np.testing.assert_allclose(found.weight[group], weight, rtol=1e-8)
        np.testing.assert_allclose(found.intercept[group], bias, rtol=1e-8, atol=1e-9)


def test_a_target_below_zero_only_has_to_stay_there() -> None:
    plain, start = problem_of(rectified=False, seed=3)
    behind, _ = problem_of(rectified=True, seed=3)
    linear, relaxed = solve(plain, start, 1e-6), solve(behind, start, 1e-6)
    assert linear is not None
    assert relaxed is not None
    assert relaxed.error < error_of(behind, linear.weight, linear.intercept)


def test_inputs_that_are_all_zero_have_no_solution() -> None:
    problem, start = problem_of()
    empty = Problem(torch.zeros_like(problem.inputs), problem.target, None, False, True)
    assert solve(empty, start, 1e-3) is None


def test_inputs_that_repeat_each_other_are_no_trouble() -> None:
    problem, start = problem_of()
    twice = torch.cat([problem.inputs, problem.inputs], dim=2)
    wide = Fit(torch.cat([start.weight, start.weight], dim=2), start.intercept, 0.0)
    found, single = (
        solve(Problem(twice, problem.target, None, False, True), wide, 1e-6),
        solve(problem, start, 1e-6),
    )
    assert found is not None
    assert single is not None
    assert found.error == pytest.approx(single.error, rel=1e-3)
