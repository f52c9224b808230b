"""Model + Structure + Plan -> a smaller module. The model passed in is untouched."""

from __future__ import annotations

from torch import nn

from prunecli.errors import NotPrunableError
from prunecli.graph.borrowing import uncollected
from prunecli.graph.cutting import cut, tensors_fit
from prunecli.graph.structure import Structure
from prunecli.plan import Plan


def apply_plan(model: nn.Module, structure: Structure, plan: Plan) -> nn.Module:
    """Return a copy of `model` without the units that the plan removes.

    Parameters and buffers are sliced once per axis and own their memory; attributes that hold sizes
    are set; modules whose own code allows one size only become their size-explicit twins.

    Raises:
        NotPrunableError: the structure was not found on this model.
        UsageError: the plan was not made for this structure.
    """
    plan.check(structure)
    if not tensors_fit(model, structure):
        raise NotPrunableError(
            f"`{type(model).__name__}` does not have the tensors that this structure was found on. "
            "Find the groups again on the model to be cut."
        )
    with uncollected():
        return cut(model, structure, plan.kept())
