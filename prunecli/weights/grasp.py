"""`grasp`: how much the gradient's size, and with it the speed of training, depends on a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from prunecli.data import main_output
from prunecli.errors import PruneError, ScoreError, UsageError
from prunecli.importance.gradients import blaming, call_model, checked_loss, explained
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.network import Network, WeightScores, samples_in, zeros_like


class Sign(str, Enum):
    """Which end of the scores goes first."""

    PAPER = "paper"  # what carries gradient stays
    THESIS = "thesis"  # the reverse, as it was published


@method(
    "grasp",
    needs=Needs.PARAMETERS | Needs.LABELS | Needs.GRADIENTS | Needs.CURVATURE,
    source="Wang et al., 2020",
    passes="3",
    granularity=Granularity.WEIGHT,
    signed=True,
)
@dataclass(frozen=True)
class Grasp:
    """How much of the squared gradient, the pace at which training starts, would go with the weight.

    score = w (H g), with g the gradient and H the Hessian of the mean loss over the sample: without w, the
    squared gradient changes by -2 w (H g), to first order. The paper removes the highest of -w (H g),
    which are these lowest. Logits are divided by `temperature` before the softmax, and the sample has as
    many samples of each class. `sign=thesis` turns the scores round, to reproduce what was published so.

    Every batch is looked at in two halves, twice: for g, and for the gradient of g . dE/dw, so that a
    graph of second order never covers more than half a batch.
    """

    per_class: Annotated[int, "So many samples of each class; 0: the sample as it comes."] = 10
    temperature: Annotated[float, "What logits are divided by, where labels are classes."] = 200.0
    sign: Annotated[Sign, "Keep what carries gradient, or the reverse."] = Sign.PAPER

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: Naming the argument.
        """
        if self.per_class < 0:
            raise UsageError(f"`per_class` is a whole number from 0 on, not {self.per_class}.")
        if not 0 < self.temperature < inf:
            raise UsageError(f"`temperature` is a number above 0, not {self.temperature:g}.")

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the products.

        Raises:
            ScoreError: An operation of the network has no second derivative.
        """
        halves = [half for batch in batches for half in _halves(batch)]
        loss_of = self._loss_of(network)
        gradients = network.gradients(halves, loss_of)
        products = zeros_like(network)
        samples = samples_in(halves)
        for number, half in network.own(halves):
            for name, product in _curved(network, half, number, loss_of, gradients).items():
                products[name] += product.double() * (half.samples / samples)
            network.tell("second derivatives", number + 1, len(halves))
        products = network.of_all(products)
        sign = 1 if self.sign is Sign.PAPER else -1
        return {name: sign * weight * products[name] for name, weight in network.weights.items()}

    def _loss_of(self, network: Network) -> Callable[[Any, MicroBatch], Tensor]:
        def loss_of(output: Any, batch: MicroBatch) -> Tensor:
            is_class = isinstance(batch.targets, Tensor) and not batch.targets.is_floating_point()
            if is_class and self.temperature != 1:
                output = _cooled(output, self.temperature)
            return network.loss(output, batch)

        return loss_of


def _cooled(output: Any, temperature: float) -> Any:
    """Return an output with its logits divided; the rest of it stays, for losses that look at that too."""
    logits = main_output(output)
    leaves, form = tree_flatten(output)
    if not any(leaf is logits for leaf in leaves):
        return logits / temperature
    return tree_unflatten([leaf / temperature if leaf is logits else leaf for leaf in leaves], form)


def _halves(batch: MicroBatch) -> Iterator[MicroBatch]:
    middle = batch.samples // 2
    if middle:
        yield batch.cut(0, middle)
    yield batch.cut(middle, batch.samples)


def _curved(
    network: Network,
    batch: MicroBatch,
    number: int,
    loss_of: Callable[[Any, MicroBatch], Tensor],
    gradients: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the batch's Hessian times the gradients.

    Raises:
        ScoreError: An operation of the network has no second derivative.
    """
    flat = [twin for twins in network.twins.values() for twin in twins]
    along = [gradients[name].to(twin.dtype) for name, twins in network.twins.items() for twin in twins]
    where = f"Half batch {number} (inputs {batch.describe()})"
    # other attention has no second derivative
    with blaming(network.model, batch), _explained(where), sdpa_kernel(SDPBackend.MATH):
        loss = checked_loss(loss_of(call_model(network.model, batch), batch), where)
        first = torch.autograd.grad(loss, flat, create_graph=True, materialize_grads=True)
        slope = torch.stack([(one * other).sum() for one, other in zip(first, along, strict=True)]).sum()
        if not slope.requires_grad:
            raise ScoreError(
                f"{where}: the gradient depends on none of the prunable weights, which is all that `grasp` "
                "looks at. Use `snip`, or another loss."
            )
        second = iter(_gradients(slope, flat))
    return {name: torch.stack([next(second) for _ in twins]).sum(0) for name, twins in network.twins.items()}


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Say on which samples second derivatives failed."""
    with explained(where):
        try:
            yield
        except (PruneError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ScoreError(
                f"{where}: second derivatives failed, which `grasp` needs: {type(error).__name__}: {error}. "
                "Methods such as `snip` and `synflow` need none."
            ) from error


def _gradients(slope: Tensor, flat: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients. Not by `autograd.grad`: that passes by what refuses to be derived twice."""
    try:
        for tensor in flat:
            tensor.grad = None
        torch.autograd.backward(slope)
        return [torch.zeros_like(each) if each.grad is None else each.grad for each in flat]
    finally:
        for tensor in flat:
            tensor.grad = None
