"""What methods that score weights look at, and what they hand back: `Network` -> one number per weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunecli.errors import DataError
from prunecli.graph.structure import Structure
from prunecli.importance.gradients import LossFn, Twins, filled, loss_gradients
from prunecli.importance.look import MEMORY, Tell
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.undisturbed import require_gradients
from prunecli.peers import ALONE, Peers

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
    peers: Peers = ALONE
    """The processes that score the same model, each by its batches of the sample."""

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The prunable parameters, detached, by name."""
        return {name: same[0].detach() for name, same in self.twins.items()}

    def own(self, batches: Sequence[MicroBatch]) -> Iterator[tuple[int, MicroBatch]]:
        """Yield the batches that this process looks at, with their numbers among all."""
        return islice(enumerate(batches), self.peers.rank, None, self.peers.count)

    def of_all(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of what all processes found, in place.

        Raises:
            PeerError: One of them is gone.
        """
        self.peers.add_up(list(found.values()))
        return dict(found)

    def gradients(
        self, batches: Sequence[MicroBatch], loss_of: Callable[[Any, MicroBatch], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the gradient of the mean loss over all samples; zero where forward does not use a weight.

        Args:
            batches: The samples.
            loss_of: Makes the mean loss of an output and its batch; by default that of the spec.

        Raises:
            ScoreError: The model or the loss fails, or the loss is not one finite number.
            DataError: There is no sample.
            PeerError: Another process is gone.
        """
        require_gradients(self.model, [each for same in self.twins.values() for each in same])
        samples = samples_in(batches)
        total = zeros_like(self)
        for number, batch in self.own(batches):
            found = filled(self._gradients(batch, number, loss_of), self.weights)
            for name, gradient in found.items():
                total[name] += gradient.double() * batch.samples
            self.tell("scoring", number + 1, 0)
        return {name: gradient / samples for name, gradient in self.of_all(total).items()}

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

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return one finite number per prunable weight.

        Args:
            network: What to score.
            batches: The sample, of which `network.own` are this process's. Empty for methods without data.
        """
        ...


def samples_in(batches: Sequence[MicroBatch]) -> int:
    """Return how many samples there are.

    Raises:
        DataError: There are none.
    """
    samples = sum(batch.samples for batch in batches)
    if not samples:
        raise DataError("The sample is empty: there is nothing to score the weights on.")
    return samples


def zeros_like(network: Network) -> dict[str, Tensor]:
    """Return zero in float64 for every weight."""
    return {name: torch.zeros_like(each, dtype=torch.float64) for name, each in network.weights.items()}
