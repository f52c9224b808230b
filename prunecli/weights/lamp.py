"""`lamp`: how large a weight is among those of its layer that are not smaller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.network import Network, WeightScores


@method("lamp", needs=Needs.PARAMETERS, source="Lee et al., 2021", granularity=Granularity.WEIGHT)
class Lamp:
    """Square of the weight, as a share of the squares of all weights of its layer that are not smaller.

    score = w_u^2 / sum of w_v^2 over v >= u, with the weights of each layer sorted by size. The largest of
    every layer scores 1, so that a global ranking empties no layer: it prunes each by magnitude, with
    shares that follow by themselves. A layer of zeros scores 0.
    """

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the shares."""
        return {name: shares_of_the_rest(weight) for name, weight in network.weights.items()}


def shares_of_the_rest(weight: Tensor) -> Tensor:
    """Return the scores of one layer, in float64.

    The sums run from the largest down: total minus running sum would cancel, and the top score not be 1.

    >>> shares_of_the_rest(torch.tensor([3.0, 1.0, 2.0]))  # 9 / 9, 1 / 14, 4 / 13
    tensor([1.0000, 0.0714, 0.3077], dtype=torch.float64)
    """
    sizes = weight.detach().abs().double().flatten()
    largest = sizes.max()
    if not largest:
        return torch.zeros_like(weight, dtype=torch.float64)
    ordered, order = (sizes / largest).square().sort(stable=True)
    rest = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(ordered)
    scores[order] = ordered / rest
    return scores.reshape(weight.shape)
