"""Rows of a layer's input and what it should put out -> the weight that does so best: ridge least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_CHUNK = 16384
"""Rows that are multiplied at a time in the working precision; their sums are in float64."""
RELAXATIONS = 2


@dataclass(frozen=True, eq=False)
class Problem:
    """What a layer reads and should put out, for each of its groups (most layers are one group).

    What comes out is `inputs @ weight.T + intercept + extra`, and a ReLU if `rectified`.
    """

    inputs: Float[Tensor, "groups rows columns"]
    target: Float[Tensor, "groups rows outputs"]
    extra: Float[Tensor, "groups rows outputs"] | None
    rectified: bool
    has_intercept: bool

    @property
    def has_few_rows(self) -> bool:
        """Whether there are fewer rows than columns."""
        return self.inputs.shape[1] < self.inputs.shape[2]

    def middle(self, wanted: Tensor) -> Float64[Tensor, "groups outputs"]:
        """Return what is taken out of a target, likewise."""
        mean = _mean(wanted)
        return mean if self.has_intercept else torch.zeros_like(mean)

    @property
    def mean(self) -> Float64[Tensor, "groups columns"]:
        """What is taken out of the inputs: their mean if an intercept makes up for it, else nothing."""
        mean = _mean(self.inputs)
        return mean if self.has_intercept else torch.zeros_like(mean)


@dataclass(frozen=True, eq=False)
class Fit:
    """A weight and an intercept, and how far they are from the target (a share of its spread)."""

    weight: Float64[Tensor, "groups outputs columns"]
    intercept: Float64[Tensor, "groups outputs"]
    error: float


def solve(problem: Problem, start: Fit, ridge: float) -> Fit | None:
    """Return the weight that comes closest to the target; None where the equations have no solution.

    Minimises |Y - X W^T - b|^2 + l |W - W_0|^2 with l = ridge * mean diagonal of the Gram matrix X^T X, in
    float64 with the means taken out. Where a ReLU follows, a target below zero only has to stay below
    zero: it is replaced by min(prediction, 0) and the equations are solved again, twice, which never
    makes the error behind the ReLU larger (METHODS 6.3, and an alternating projection).

    Args:
        problem: Inputs and target.
        start: The weight W_0 that the solution is pulled to.
        ridge: How strongly.
    """
    equations = _Few(problem, start, ridge) if problem.has_few_rows else _Many(problem, start, ridge)
    if not equations.has_solution:
        return None
    fit, extra = equations.fit, problem.extra
    target = problem.target
    weight, intercept = fit(target if extra is None else target - extra)
    for _ in range(RELAXATIONS if problem.rectified else 0):
        predicted = predict(problem, weight, intercept)
        relaxed = torch.where(target < 0, predicted.clamp(max=0), target)
        weight, intercept = fit(relaxed if extra is None else relaxed - extra)
    if not (weight.isfinite().all() and intercept.isfinite().all()):
        return None
    return Fit(weight, intercept, error_of(problem, weight, intercept))


class _Many:
    """The normal equations: a matrix of columns x columns."""

    def __init__(self, problem: Problem, start: Fit, ridge: float) -> None:
        self.inputs, self.start = problem.inputs, start
        self.rows = problem.inputs.shape[1]
        self.mean = problem.mean
        gram = _products(self.inputs, self.inputs)
        gram -= self.rows * self.mean[:, :, None] * self.mean[:, None, :]
        self.pull = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        self.factor, self.has_solution = _factor(gram, self.pull)
        self.problem = problem

    def fit(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight and the intercept for a target."""
        middle = self.problem.middle(wanted)
        cross = _products(self.inputs, wanted) - self.rows * self.mean[:, :, None] * middle[:, None, :]
        weight = torch.cholesky_solve(cross + self.pull * self.start.weight.mT, self.factor).mT
        return weight, middle - (weight @ self.mean[:, :, None])[:, :, 0]


class _Few:
    """The same in terms of rows, of which there are fewer than columns: a matrix of rows x rows."""

    def __init__(self, problem: Problem, start: Fit, ridge: float) -> None:
        self.start, self.mean = start, problem.mean
        self.centred = problem.inputs - self.mean.to(problem.inputs.dtype)[:, None, :]
        kernel = _products(self.centred.mT, self.centred.mT)
        columns = problem.inputs.shape[2]
        self.pull = ridge * kernel.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] / columns
        self.factor, self.has_solution = _factor(kernel, self.pull)
        self.problem = problem

    def fit(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight and the intercept for a target."""
        middle = self.problem.middle(wanted)
        dtype = self.centred.dtype
        left = wanted.double() - middle[:, None, :] - (self.centred @ self.start.weight.to(dtype).mT).double()
        shares = torch.cholesky_solve(left, self.factor).to(dtype)
        weight = self.start.weight + (shares.mT @ self.centred).double()
        return weight, middle - (weight @ self.mean[:, :, None])[:, :, 0]


def _factor(matrix: Tensor, pull: Tensor) -> tuple[Tensor, bool]:
    """Return the Cholesky factor of a matrix with the ridge on its diagonal, and whether there is one."""
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix + pull * identity)
    return factor, not bool(failed.any()) and bool((pull > 0).all())


def predict(problem: Problem, weight: Tensor, intercept: Tensor) -> Tensor:
    """Return what comes out in front of a ReLU."""
    dtype = problem.inputs.dtype
    out = torch.baddbmm(intercept.to(dtype)[:, None, :], problem.inputs, weight.to(dtype).mT)
    return out if problem.extra is None else out.add_(problem.extra)


def error_of(problem: Problem, weight: Tensor, intercept: Tensor) -> float:
    """Return the squared distance from the target, over the spread of the target."""
    found, wanted = predict(problem, weight, intercept), problem.target
    if problem.rectified:
        found, wanted = found.relu_(), wanted.relu()
    spread = (wanted - wanted.mean(1, keepdim=True)).square_().sum(dtype=torch.float64)
    distance = (found - wanted).square_().sum(dtype=torch.float64)
    return float(distance / spread.clamp(min=torch.finfo(torch.float32).tiny))


def _mean(values: Tensor) -> Float64[Tensor, "groups columns"]:
    """Return the mean over rows, summed up chunk by chunk."""
    return torch.stack([part.sum(1).double() for part in values.split(_CHUNK, 1)]).sum(0) / values.shape[1]


def _products(left: Tensor, right: Tensor) -> Float64[Tensor, "groups columns others"]:
    """Return left^T right for each group."""
    total = torch.zeros(
        (left.shape[0], left.shape[2], right.shape[2]), dtype=torch.float64, device=left.device
    )
    for one, other in zip(left.split(_CHUNK, 1), right.split(_CHUNK, 1), strict=True):
        total += torch.bmm(one.mT, other).double()
    return total
