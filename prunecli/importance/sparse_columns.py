"""Gram matrices of what layers read + their weights -> the units that rebuild the outputs, and new weights.

Steps I to V of `i-spasp-train` (METHODS 6.2). A layer makes U = W H of columns that belong to units; the
weights W_t that are learned hold columns of s units only, and bring f(W_t) = 1/2 |W_t H - U|^2 down. With
A = H H^T the gradient is (W_t - W) A, so A is all that is needed of H. Where several layers read the
units, their outputs are stacked: each has its own W and A, and squares add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from prunecli.errors import UsageError

_SETTLED = 1e-6
"""The loss has settled where an iteration changes it by less than this share."""

Weights = tuple[Tensor, ...]
"""One weight per reader: [outputs, columns]."""


class Step(str, Enum):
    """How the weights on the candidates are found."""

    LINE_SEARCH = "line-search"  # one step down the gradient, as far as the loss falls
    CLOSED_FORM = "closed-form"  # least squares


class Start(str, Enum):
    """The weights before the first iteration."""

    ZERO = "zero"
    RANDOM = "random"  # those of s random units, as they are
    ORIGINAL = "original"  # refused


class Truncate(str, Enum):
    """By what the s units among the candidates are chosen."""

    AUTO = "auto"  # whichever of the two is safe
    L2 = "l2"  # the norm of the unit's columns
    CONTRIBUTION = "contribution"  # each column times the norm of what it reads


@dataclass(frozen=True)
class Course:
    """How the iterations go."""

    iterations: int = 20
    inner: int = 5
    step: Step = Step.LINE_SEARCH
    start: Start = Start.ZERO
    truncate: Truncate = Truncate.AUTO

    def __post_init__(self) -> None:
        """Refuse what leads nowhere.

        Raises:
            UsageError: Naming the argument.
        """
        if self.iterations < 1:
            raise UsageError(f"`iterations` is a whole number from 1 on, not {self.iterations}.")
        if self.inner < 0:
            raise UsageError(f"`inner` is a whole number from 0 on, not {self.inner}.")
        if self.start is Start.ORIGINAL:
            raise UsageError(
                "`start=original` leads nowhere: with the dense weights the outputs are the dense ones, the "
                "gradient is zero, and no unit is told from another. Use `start=zero` or `start=random`."
            )

    @property
    def truncation(self) -> Truncate:
        """What `auto` comes to."""
        if self.truncate is not Truncate.AUTO:
            return self.truncate
        return Truncate.L2 if self._is_safe_for_l2 else Truncate.CONTRIBUTION

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result should know."""
        if self.truncate is not Truncate.AUTO or self._is_safe_for_l2:
            return ()
        cause = "start=random" if self.start is Start.RANDOM else "step=closed-form"
        return (
            f"`{cause}`: units are selected by `truncate=contribution`; plain norms of weights ignore how "
            "large the activations are, and keep wrong units there.",
        )

    @property
    def _is_safe_for_l2(self) -> bool:
        return self.start is Start.ZERO and self.step is Step.LINE_SEARCH


@runtime_checkable
class Trains(Protocol):
    """A method that trains the layers which read the units, along with its selection."""

    @property
    def course(self) -> Course:
        """How the iterations go."""
        ...

    @property
    def trains_readers(self) -> bool:
        """Whether the layers behind the cut are to have the trained weights."""
        ...


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads units: what it reads, as a Gram matrix, and its weight."""

    gram: Float64[Tensor, "columns columns"]
    weight: Float64[Tensor, "outputs columns"]
    units: Int64[Tensor, " columns"]
    """Which unit a column belongs to."""


@dataclass(frozen=True, eq=False)
class Learned:
    """The units chosen, the weights on them (zero elsewhere), and how the loss fell."""

    support: Bool[Tensor, " width"]
    weights: Weights
    losses: tuple[float, ...]
    """f before the first iteration and after each."""
    energy: float
    """|U|^2: how large the outputs are."""
    notes: tuple[str, ...] = ()

    @property
    def relative(self) -> tuple[float, ...]:
        """The losses over |U|^2; zero where there are no outputs."""
        return tuple(loss / self.energy if self.energy else 0.0 for loss in self.losses)


def learn(
    readers: Sequence[Reader],
    width: int,
    size: int,
    course: Course = Course(),  # noqa: B008 (frozen)
    draws: Float64[Tensor, " width"] | None = None,
) -> Learned:
    """Return which `size` of `width` units rebuild what the readers make of all, and trained weights.

    Each iteration: I. the gradient; II. candidates: the units chosen so far, and as many more as are
    wanted, those with the largest gradients; III. a step on the candidates; IV. of these the largest;
    V. `inner` more steps down the gradient on them.

    Args:
        readers: The layers that read the units.
        width: How many units there are.
        size: How many to choose.
        course: How the iterations go.
        draws: A random number per unit, for a random start: it begins with the units that drew most.

    Raises:
        UsageError: A random start without random numbers.

    >>> hidden = torch.tensor([[1.0, 2.0], [4.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    >>> reader = Reader(hidden @ hidden.T, torch.ones(1, 3, dtype=torch.float64), torch.arange(3))
    >>> found = learn([reader], width=3, size=1)
    >>> found.support.tolist(), found.weights[0].tolist(), found.losses[-1]
    ([False, True, False], [[0.0, 1.5, 0.0]], 1.0)
    """
    joint = _Joint(readers, width)
    if size >= width:
        weights = tuple(reader.weight for reader in readers)
        return Learned(torch.ones(width, dtype=torch.bool), weights, (0.0,), joint.energy)
    support, weights = _begin(joint, size, course, draws)
    losses = [joint.loss(weights)]
    for _ in range(course.iterations):
        gradient = joint.gradient(weights)
        candidates = support | _top(joint.norms(gradient), ~support, size)
        weights = _step(joint, weights, gradient, candidates, course.step)
        before, support = support, _top(joint.norms(weights, course.truncation), candidates, size)
        weights = joint.only(weights, support)
        for _ in range(course.inner):
            weights = joint.descended(weights, joint.gradient(weights), support)
        losses.append(joint.loss(weights))
        if torch.equal(support, before) and _settled(losses):
            break
    return Learned(support, weights, tuple(losses), joint.energy, course.notes)


def train_on(
    readers: Sequence[Reader],
    support: Bool[Tensor, " width"],
    course: Course = Course(),  # noqa: B008 (frozen)
) -> Learned:
    """Return weights trained on units that are chosen already: only steps down the gradient.

    They start from the dense weights, which are not the optimum as soon as a unit is missing, so that the
    loss never rises.
    """
    joint = _Joint(readers, len(support))
    weights = joint.only(tuple(reader.weight for reader in readers), support)
    losses = [joint.loss(weights)]
    for _ in range(course.iterations):
        for _ in range(1 + course.inner):
            weights = joint.descended(weights, joint.gradient(weights), support)
        losses.append(joint.loss(weights))
        if _settled(losses):
            break
    return Learned(support, weights, tuple(losses), joint.energy)


def contributions(readers: Sequence[Reader], width: int) -> Float64[Tensor, " width"]:
    """Return how much each unit adds to the dense outputs: each column's norm times that of what it reads."""
    return _Joint(readers, width).norms(tuple(reader.weight for reader in readers), Truncate.CONTRIBUTION)


def loss_of(readers: Sequence[Reader], weights: Weights) -> float:
    """Return f, the sum over the readers."""
    return _Joint(readers, 0).loss(weights)


def _begin(joint: _Joint, size: int, course: Course, draws: Tensor | None) -> tuple[Tensor, Weights]:
    """Return S_0 and W_0."""
    support = torch.zeros(joint.width, dtype=torch.bool)
    if course.start is Start.RANDOM:
        if draws is None:
            raise UsageError("`start=random` needs a random number per unit: give `draws`.")
        support = _top(draws, ~support, size)
    return support, joint.only(tuple(reader.weight for reader in joint.readers), support)


def _step(joint: _Joint, weights: Weights, gradient: Weights, candidates: Tensor, step: Step) -> Weights:
    """Return Q: the weights after step III."""
    if step is Step.LINE_SEARCH:
        return joint.descended(weights, gradient, candidates)
    return tuple(_solved(reader, candidates[reader.units]) for reader in joint.readers)


def _solved(reader: Reader, columns: Tensor) -> Tensor:
    """Return the weight on some columns that comes closest to U: U pinv(H) = U H^T pinv(H H^T)."""
    found = torch.zeros_like(reader.weight)
    cross = (reader.weight @ reader.gram)[:, columns]
    found[:, columns] = cross @ torch.linalg.pinv(reader.gram[columns][:, columns], hermitian=True)
    return found


def _top(values: Tensor, among: Tensor, size: int) -> Bool[Tensor, " width"]:
    """Return the `size` largest, or all there are; ties go to the first."""
    order = values.where(among, -torch.inf).argsort(descending=True, stable=True)
    found = torch.zeros_like(among)
    found[order[:size]] = True
    return found & among


def _settled(losses: Sequence[float]) -> bool:
    """Return whether the last iteration hardly changed the loss."""
    return abs(losses[-1] - losses[-2]) <= _SETTLED * losses[-2]


class _Joint:
    """All readers of the units together."""

    def __init__(self, readers: Sequence[Reader], width: int) -> None:
        self.readers, self.width = tuple(readers), width
        self.energy = 2 * self.loss(tuple(torch.zeros_like(reader.weight) for reader in readers))

    def loss(self, weights: Weights) -> float:
        """Return f = 1/2 sum over the readers of |W_t H - U|^2."""
        gaps = [weight - reader.weight for reader, weight in zip(self.readers, weights, strict=True)]
        squares = [(gap @ reader.gram * gap).sum() for reader, gap in zip(self.readers, gaps, strict=True)]
        return float(sum(squares)) / 2

    def gradient(self, weights: Weights) -> Weights:
        """Return G = (W_t - W) A for each reader."""
        return tuple(
            (weight - reader.weight) @ reader.gram
            for reader, weight in zip(self.readers, weights, strict=True)
        )

    def only(self, weights: Weights, units: Tensor) -> Weights:
        """Return the columns of some units, and zero elsewhere."""
        return tuple(
            weight * units[reader.units] for reader, weight in zip(self.readers, weights, strict=True)
        )

    def descended(self, weights: Weights, gradient: Weights, units: Tensor) -> Weights:
        """Return the weights after a step on some units, as long as makes the loss lowest."""
        slope = self.only(gradient, units)
        steepness = sum((each.square().sum() for each in slope), torch.zeros(()))
        bend = sum(
            ((each @ reader.gram * each).sum() for reader, each in zip(self.readers, slope, strict=True)),
            torch.zeros(()),
        )
        length = steepness / bend if bend > 0 else torch.zeros_like(steepness)
        return tuple(weight - length * each for weight, each in zip(weights, slope, strict=True))

    def norms(self, weights: Weights, by: Truncate = Truncate.L2) -> Float64[Tensor, " width"]:
        """Return the norm over the columns of each unit, over all readers."""
        total = torch.zeros(self.width, dtype=torch.float64)
        for reader, weight in zip(self.readers, weights, strict=True):
            squares = weight.square().sum(0)
            if by is Truncate.CONTRIBUTION:
                squares = squares * reader.gram.diagonal()
            total.index_add_(0, reader.units, squares)
        return total.sqrt()
