"""`obd`: what the loss would change, to second order, if a weight became zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunecli.errors import DataError, ScoreError, UsageError
from prunecli.graph.trace import plain_kernels
from prunecli.importance.curvature import curved_directions, probed, second_derivatives
from prunecli.importance.gradients import blaming, call_model, checked_loss, explained
from prunecli.importance.look import mixes_samples
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.importance.undisturbed import require_gradients
from prunecli.weights.network import Network, WeightScores, samples_in, zeros_like
from prunecli.weights.per_sample import squared_jacobians


class Hessian(str, Enum):
    """How second derivatives are found."""

    EXACT_GN = "exact-gn"  # Gauss-Newton: a backward pass per class
    HUTCHINSON = "hutchinson"  # random probes
    EXACT = "exact"  # a second backward pass per weight


@method(
    "obd",
    needs=Needs.PARAMETERS | Needs.CURVATURE,
    source="LeCun et al., 1989",
    passes="K",
    granularity=Granularity.WEIGHT,
    signed=True,
)
@dataclass(frozen=True)
class Obd:
    """Change of the loss that the diagonal of its Hessian predicts, if the weight became zero.

    score = h w^2 / 2, signed, with h = d^2 E / dw^2 of the mean loss over the sample. By default h is the
    diagonal of the Gauss-Newton matrix, mean over samples of J^T H J with J = d output / dw and H the Hessian
    of the loss in the outputs: for cross-entropy, sum of p J^2 - (sum of p J)^2 over classes with
    p = softmax. It is 0 or more, needs no labels, and is h itself where the network is piecewise linear in
    each layer's weights (ReLU, max-pooling, fixed normalisations); smooth activations, and weights that
    several layers share, have terms that it leaves out. Dead ReLUs make zeros. Samples without labels
    are scored for cross-entropy. A sample of 10 batches by default.
    """

    hessian: Annotated[
        Hessian,
        "How second derivatives are found: Gauss-Newton (exact-gn: a backward pass per class), random probes "
        "(hutchinson), a second backward pass per weight (exact: for tiny networks).",
    ] = Hessian.EXACT_GN
    draws: Annotated[int, "How many random probes per batch, for hutchinson."] = 100

    wants_batches: ClassVar[int] = 10
    """So many batches make its sample, unless the user says otherwise."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            UsageError: Naming the argument.
        """
        if self.draws < 1:
            raise UsageError(f"`draws` is a whole number from 1 on, not {self.draws}.")

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return h w^2 / 2.

        Raises:
            ScoreError: The model or the loss fails, or samples influence each other.
            DataError: There is no sample, or no loss where one is needed.
        """
        curvature, samples = zeros_like(network), samples_in(batches)
        for number, batch in network.own(batches):
            where = f"Batch {number} (inputs {batch.describe()})"
            for name, found in self._curvature(network, batch, number, where).items():
                curvature[name] += batch.samples * found
            network.tell("scoring", number + 1, 0)
        curvature = network.of_all(curvature)
        return {
            name: curvature[name] / samples * weight.double().square() / 2
            for name, weight in network.weights.items()
        }

    def _curvature(self, network: Network, batch: MicroBatch, number: int, where: str) -> dict[str, Tensor]:
        """Return the second derivatives of the batch's mean loss."""
        if self.hessian is not Hessian.EXACT_GN:
            return self._of_loss(network, batch, number, where)
        if mixes_samples(network.model):
            raise ScoreError(
                f"{where}: Gauss-Newton takes each sample by itself, and normalisations use those statistics "
                "that the batch has. Use `--score-bn eval`, or `--method-arg hessian=hutchinson`."
            )

        def bends(output: Tensor, part: MicroBatch) -> tuple[Tensor, Tensor]:
            return _bends(network, output, part, where)

        total = squared_jacobians(network, batch, bends, where)
        return {name: each / batch.samples for name, each in total.items()}

    def _of_loss(self, network: Network, batch: MicroBatch, number: int, where: str) -> dict[str, Tensor]:
        """Differentiate the loss twice."""
        if network.loss_fn is None or batch.targets is None:
            raise DataError(
                f"`obd` with hessian={self.hessian.value} needs labelled samples and a loss. "
                "`--method-arg hessian=exact-gn` does not."
            )
        leaves = [each for same in network.twins.values() for each in same]
        require_gradients(network.model, leaves)
        with blaming(network.model, batch), explained(where), plain_kernels():
            loss = network.loss(call_model(network.model, batch), batch)
            loss = checked_loss(loss, where, "any weight that is to be scored")
            if self.hessian is Hessian.EXACT:
                found = iter(second_derivatives(loss, leaves, network.tell))
            else:
                generator = torch.Generator().manual_seed(network.seed * 100_003 + number)
                found = iter(probed(loss, leaves, self.draws, generator, network.tell))
        parts = {name: [next(found) for _ in same] for name, same in network.twins.items()}
        return {name: torch.stack(each).sum(0) for name, each in parts.items()}


def _bends(network: Network, output: Tensor, part: MicroBatch, where: str) -> tuple[Tensor, Tensor]:
    """Return by how much the loss of each sample bends in its outputs, and in which directions."""

    def loss_of(leaf: Tensor) -> Tensor:
        if network.loss_fn is None or part.targets is None:
            return leaf.logsumexp(1).mean()  # what of a cross-entropy is not linear in the outputs
        return network.loss(leaf, part)

    checked_loss(loss_of(output.detach()), where)
    values, vectors = curved_directions(output, part.samples, loss_of)
    return values * part.samples, vectors  # the loss is a mean over samples
