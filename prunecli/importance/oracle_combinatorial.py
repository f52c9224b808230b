"""`oracle-combinatorial`: every subset of a layer's units is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.gates import refuse_ungated
from prunecli.importance.registry import Needs, method


@method(
    "oracle-combinatorial",
    needs=Needs.LOSSES | Needs.LABELS,
    passes="1 + 1 per subset of units",
    source="Molchanov et al., 2019, section 4.1",
)
@dataclass(frozen=True)
class OracleCombinatorial:
    """How often a unit is in the best subset: all subsets of a layer's units are switched off in turn.

    score = share of the numbers k = 1 ... width - 1 of removed units for which the unit stays in the
    network of least loss among all that remove k units of its layer. Subsets
    that are equally good share. Where the best subsets are nested, keeping the highest scores is the
    best choice for every k. With `remove=k` the score is 1 for units that stay when k are removed and 0
    for those that go; with `remove=1` the one that goes is that whose removal raises the loss least,
    signed, as the greedy oracle would find it.

    A layer of n units has 2^n subsets, so only narrow layers can be scored; give the others another
    method by `--fallback`.
    """

    remove: Annotated[int, "How many units go; 0 stands for every number, one after the other."] = 0
    max_subsets: Annotated[int, "Refuse layers with more subsets than this."] = 1_000_000

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: gates are closed, no parameter is read."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no gate can be put on, and layers with too many subsets or too few units."""
        if 2**group.width > self.max_subsets:
            return (
                f"has {group.width} units, so 2^{group.width} subsets (`--method-arg max_subsets=` allows "
                f"{self.max_subsets:,})"
            )
        if not 0 <= self.remove < group.width:
            return f"has {group.width} units, of which {self.remove} cannot go"
        return refuse_ungated(group)

    def observe(self, batch: Observed) -> State:
        """Return the loss that each subset adds, summed over samples."""
        return State(
            {
                group.name: batch.looked.changes_without(group, subsets(group.width)) * batch.samples
                for group in batch.groups
            }
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return how often each unit stays."""
        return {name: self._shares(change) for name, change in total.values.items()}

    def _shares(self, change: Float64[Tensor, " subsets"]) -> Float64[Tensor, " width"]:
        width = (len(change) + 1).bit_length() - 1
        gone = subsets(width)
        sizes = gone.sum(1)
        numbers = range(1, width) if self.remove == 0 else (self.remove,)
        stays = torch.zeros(width, dtype=torch.float64)
        for number in numbers:
            candidates = torch.nonzero(sizes == number).flatten()
            best = candidates[change[candidates] == change[candidates].min()]
            stays += 1 - gone[best].double().mean(0)
        return stays / max(len(numbers), 1)


def subsets(width: int) -> Int64[Tensor, "subsets width"]:
    """Return every subset of units but the empty one: 1 = the unit is in it.

    >>> subsets(2).tolist()
    [[1, 0], [0, 1], [1, 1]]
    """
    numbers = torch.arange(1, 2**width)
    return (numbers[:, None] >> torch.arange(width)) & 1
