"""`random` for weights: the yardstick that every other method has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from prunecli.importance.draws import drawn
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.network import Network, WeightScores


@method("random", needs=Needs.PARAMETERS, source="the usual baseline", granularity=Granularity.WEIGHT)
class RandomWeights:
    """A number drawn for each weight, fixed by the seed and the parameter's name.

    score = u, drawn from U(0, 1).
    """

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the draws."""
        return {
            name: drawn(name, tuple(weight.shape), network.seed).to(weight.device)
            for name, weight in network.weights.items()
        }
