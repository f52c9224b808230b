"""`snip`, `snip-grad` and `gradient`: how the loss answers when a weight, or its mask, begins to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunecli.errors import ScoreError
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.network import Network, WeightScores

_NEEDS = Needs.PARAMETERS | Needs.LABELS | Needs.GRADIENTS


@method(
    "gradient",
    needs=_NEEDS,
    source="Blalock et al., 2020, magnitude times gradient",
    passes="1",
    granularity=Granularity.WEIGHT,
)
class Gradient:
    """Size of the weight times the gradient of the loss in it.

    score = |w g|, with g = dE/dw of the mean loss over the sample. It ranks as `snip` does.
    """

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the products' absolute values."""
        return _products(network, batches)


@method(
    "snip",
    needs=_NEEDS,
    source="Lee et al., 2019",
    passes="1",
    granularity=Granularity.WEIGHT,
)
class Snip:
    """How strongly the loss depends on a mask on the weight: connection sensitivity.

    score = |dE/dc| / sum of the same over all weights, at c = 1 for a mask c that multiplies the weight:
    |w g| / sum of |w g|, with g = dE/dw of the mean loss over the sample.
    """

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the sensitivities, which sum to 1."""
        return _shares(_products(network, batches))


@method(
    "snip-grad",
    needs=_NEEDS,
    source="SNIP as published in 2022 without the weight",
    passes="1",
    granularity=Granularity.WEIGHT,
)
class SnipGrad:
    """The gradient of the loss alone: SNIP with the gradient in the weight, not in its mask.

    score = |g| / sum of |g| over all weights, with g = dE/dw of the mean loss over the sample. That is not
    SNIP, and is here to reproduce results that were published under its name.
    """

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the gradients' sizes, which sum to 1."""
        return _shares({name: each.abs() for name, each in network.gradients(batches).items()})


def _products(network: Network, batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
    gradients = network.gradients(batches)
    return {name: (weight * gradients[name]).abs() for name, weight in network.weights.items()}


def _shares(sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    total = sum(float(each.sum()) for each in sizes.values())
    if not total:
        raise ScoreError(
            "The loss depends on none of the prunable weights: every gradient is zero. Check that the "
            "network still passes something on (dead ReLUs, layers without weights), or use `magnitude`."
        )
    return {name: each / total for name, each in sizes.items()}
