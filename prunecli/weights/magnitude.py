"""`magnitude`: how large a weight is."""

from __future__ import annotations

from collections.abc import Sequence

from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.network import Network, WeightScores


@method(
    "magnitude",
    needs=Needs.PARAMETERS,
    source="Han et al., 2015",
    granularity=Granularity.WEIGHT,
)
class Magnitude:
    """How large the weight is.

    score = |w|. At initialisation, the widest layers have the smallest weights, and a global ranking may
    empty them (`--scope layer`).
    """

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the absolute values."""
        return {name: weight.abs() for name, weight in network.weights.items()}
