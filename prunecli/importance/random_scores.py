"""`random`: the yardstick that every other method has to beat."""

from __future__ import annotations

from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.draws import draws_for
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
        return State({group.name: draws_for(group, batch.seed) for group in batch.groups})

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the draws, which are finished."""
        return total.values
