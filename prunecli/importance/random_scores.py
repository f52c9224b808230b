"""`random`: the yardstick that every other method has to beat."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float64
from torch import Tensor

from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.registry import Needs, method


@method("random", needs=Needs.PARAMETERS, source="the usual baseline")
class Random:
    """A number drawn for each unit, fixed by the seed and the group's name.

    score = u, drawn from U(0, 1).
    """

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: no parameter is read."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse nothing."""
        return None

    def observe(self, batch: Observed) -> State:
        """Return the draws."""
        return State({group.name: _draws(batch.seed, group) for group in batch.groups})

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the draws, which are finished."""
        return total.values


def _draws(seed: int, group: Group) -> Float64[Tensor, " width"]:
    """Draw from a generator of the group's own, so that neither order nor other groups matter."""
    digest = hashlib.sha256(f"{seed} {group.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(group.width, generator=generator, dtype=torch.float64)
