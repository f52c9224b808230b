"""Group -> the members that several methods read."""

from __future__ import annotations

from prunecli.graph.structure import Group, Member, Role


def gate_members(group: Group) -> tuple[Member, ...]:
    """Return what stands right before the gate on the units of a group, else the weights that read them.

    Their products with their gradients add up, unit by unit, to the gradient of the gate.
    """
    gated = tuple(member for member in group.members if member.gated)
    return gated or tuple(member for member in group.consumers if member.role is Role.WEIGHT)
