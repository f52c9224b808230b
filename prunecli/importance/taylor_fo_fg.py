"""`taylor-fo-fg`: the first-order change of the loss, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.gates import OnGates
from prunecli.importance.registry import Needs, method


@method(
    "taylor-fo-fg",
    needs=Needs.GATES | Needs.LABELS,
    passes="1",
    source="Molchanov et al., 2019, full gradient",
)
class TaylorFOFullGradient(OnGates):
    """Squared gate gradient of each single sample, averaged: what `taylor-fo` is for micro-batches of one.

    score = mean over samples b of h_b^2, with h_b = dE_b/dz at z = 1 for a gate z that multiplies the
    unit, and E_b the loss of sample b. Contributions of opposite sign do not cancel, as they do in
    `taylor-fo`. With E the mean over B samples this is B * sum over b of (dE/dz_b)^2, so that a short
    last micro-batch counts no more than its samples.
    """

    def observe(self, batch: Observed) -> State:
        """Return the sums over samples of squares, and how many samples there were."""
        gradients = batch.looked.gate_gradients
        return State({group.name: _energy(gradients[group.name]) for group in batch.groups})

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the mean over samples."""
        return {name: energy / samples for name, (energy, samples) in total.values.items()}


def _energy(gradient: Tensor) -> Tensor:
    """Return two rows: the sum over samples of h_b^2, where `gradient` is h_b / B, and B."""
    samples, width = gradient.shape
    return torch.stack([gradient.square().sum(0) * samples**2, gradient.new_full((width,), samples)])
