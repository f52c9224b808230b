"""`activation-density`: how often a unit is not zero behind its ReLU."""

from __future__ import annotations

import torch
from torch import Tensor

from prunecli.graph.structure import Group, Member, SiteKind
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import by_unit
from prunecli.importance.look import Seen
from prunecli.importance.readings import sum_elsewhere
from prunecli.importance.registry import Needs, method


@method(
    "activation-density",
    needs=Needs.ACTIVATIONS,
    passes="1",
    source="activation-density pruning (arXiv 2002.02949), per unit",
)
class ActivationDensity:
    """Share of the outputs of each unit's ReLU that are not zero.

    score = (number of outputs > 0) / (number of outputs), over samples, places and all ReLUs that the
    unit passes. Numbers are counted, so they are exact.

    The paper sizes layers by the density of a whole layer, which is the mean of these scores, and
    draws at random what goes. The score of a single unit is this project's: 1 minus the average
    percentage of zeros (APoZ).
    """

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: activations are read, not parameters."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no ReLU sets to zero."""
        if any(site.kind is SiteKind.RECTIFIED for site in group.sites):
            return None
        return "passes no ReLU, so nothing sets its units to zero"

    def observe(self, batch: Observed) -> State:
        """Return two rows of counts: outputs > 0, and outputs."""
        counts = {group.name: torch.zeros(2, group.width, dtype=torch.int64) for group in batch.groups}

        def count(seen: Seen) -> None:
            for group, site in seen.sites:
                if group.name in counts:
                    positive = sum_elsewhere(seen.tensor > 0, site.dim)
                    each = torch.full_like(positive, seen.tensor.numel() // site.length)
                    counts[group.name] += by_unit(torch.stack([positive, each]), group, site).cpu()

        batch.looked.visit(SiteKind.RECTIFIED, count)
        return State({name: _exactly(found) for name, found in counts.items()})

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the shares; 0 where forward passes no ReLU."""
        return {name: positive / each.clamp_min(1) for name, (positive, each) in total.values.items()}


def _exactly(counts: Tensor) -> Tensor:
    """Return counts as float64, which holds whole numbers exactly up to 2^53."""
    return counts.to(torch.float64)
