"""What methods that score weights look at, and what they hand back: `Network` -> one number per weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunecli.errors import DataError
from prunecli.graph.structure import Structure
from prunecli.importance.gradients import LossFn, Twins, filled, loss_gradients
from prunecli.importance.look import MEMORY, Tell
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.undisturbed import require_gradients

WeightScores = Mapping[str, Tensor]
"""Name of a prunable parameter -> one number per weight, in the parameter's shape. Higher = keep."""

Masks = Mapping[str, Tensor]
"""Name of a prunable parameter -> a bool per weight, True = keep."""


@dataclass(frozen=True, eq=False)
class Network:
    """A model that lies ready to be looked at, and which of its weights are to be scored.

    It is lent: in eval mode (or with the statistics of the batch, as asked for), gradients on, random
    numbers seeded; what a method changes of mode, hooks and buffers is undone, but parameters must stay.
    """

    model: nn.Module
    structure: Structure
    twins: Twins
    """The prunable parameters by canonical name, in the order of the model; tied ones are several objects."""
    example: tuple[tuple[Any, ...], Mapping[str, Any]]
    """Positional and keyword inputs of one sample."""
    loss_fn: LossFn | None = None
    seed: int = 0
    masks: Masks | None = None
    """What is masked already; its weights are zero, unless a method prunes in steps. None: nothing is."""
    memory: int = MEMORY
    """Bytes that activations may take in looks that can be split."""
    tell: Tell = lambda stage, done, total: None
    known: dict[str, Any] = field(default_factory=dict)
    """What a method has learnt of the model that holds for its next step too."""

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The prunable parameters, detached, by name."""
        return {name: same[0].detach() for name, same in self.twins.items()}

    def gradients(
        self, batches: Iterable[MicroBatch], loss_of: Callable[[Any, MicroBatch], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the gradient of the mean loss over all samples; zero where forward does not use a weight.

        Args:
            batches: The samples.
            loss_of: Makes the mean loss of an output and its batch; by default that of the spec.

        Raises:
            ScoreError: The model or the loss fails, or the loss is not one finite number.
            DataError: There is no sample.
        """
        require_gradients(self.model, [each for same in self.twins.values() for each in same])
        total: dict[str, Tensor] = {}
        samples = 0
        for number, batch in enumerate(batches):
            found = filled(self._gradients(batch, number, loss_of), self.weights)
            for name, gradient in found.items():
                share = gradient.double() * batch.samples
                total[name] = total[name] + share if name in total else share
            samples += batch.samples
            self.tell("scoring", number + 1, 0)
        if not samples:
            raise DataError("The sample is empty: there is nothing to score the weights on.")
        return {name: gradient / samples for name, gradient in total.items()}

    def loss(self, output: Any, batch: MicroBatch) -> Tensor:
        """Return the mean loss of an output."""
        assert self.loss_fn is not None  # the engine makes sure of it
        return self.loss_fn(output, batch.targets)

    def _gradients(
        self, batch: MicroBatch, number: int, loss_of: Callable[[Any, MicroBatch], Tensor] | None
    ) -> dict[str, Tensor | None]:
        where = f"Batch {number} (inputs {batch.describe()})"
        of = loss_of or self.loss
        return loss_gradients(self.model, batch, lambda output: of(output, batch), self.twins, where)


class WeightMethod(Protocol):
    """A way to score weights. Higher = keep, always."""

    def score(self, network: Network, batches: Iterable[MicroBatch]) -> WeightScores:
        """Return one finite number per prunable weight.

        Args:
            network: What to score.
            batches: The sample; it may be gone through more than once. Empty for methods without data.
        """
        ...


def zeros_like(network: Network) -> dict[str, Tensor]:
    """Return zero in float64 for every weight."""
    return {name: torch.zeros_like(each, dtype=torch.float64) for name, each in network.weights.items()}
