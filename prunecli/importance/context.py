"""What a method sees of a micro-batch, and what it hands back: `Observed` -> `State`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import assert_never

from prunecli.graph.structure import Group

if TYPE_CHECKING:
    from prunecli.importance.look import Look

UnitValues = Mapping[str, Float64[Tensor, " width"]]
"""Group name -> one number per unit."""

Sums = Mapping[str, Float64[Tensor, "... width"]]
"""Group name -> one or several numbers per unit."""


class Merge(str, Enum):
    """How two states of one method become one: over micro-batches now, over processes later."""

    SUM = "sum"
    MAX = "max"
    LAST = "last"  # only the later one counts


@dataclass(frozen=True, eq=False)
class State:
    """What a method adds up over micro-batches."""

    values: Sums
    merge: Merge = Merge.SUM
    maxima: Mapping[str, Float64[Tensor, "*any"]] = field(default_factory=dict)
    """What takes the maximum, whatever `values` do; where they are replaced, it is replaced with them."""

    def merged(self, other: State) -> State:
        """Return the state of both samples together.

        >>> one, two = (State({"conv1": torch.tensor([x, 1.0]).double()}) for x in (1.0, 2.0))
        >>> one.merged(two).values["conv1"]
        tensor([3., 2.], dtype=torch.float64)
        """
        match self.merge:
            case Merge.SUM:
                merged = {name: value + other.values[name] for name, value in self.values.items()}
            case Merge.MAX:
                merged = _largest(self.values, other.values)
            case Merge.LAST:
                return other
            case _:
                assert_never(self.merge)
        return State(merged, self.merge, _largest(self.maxima, other.maxima))


def _largest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.maximum(value, other[name]) for name, value in one.items()}


@dataclass(frozen=True, eq=False)
class Observed:
    """One micro-batch, as methods see it.

    A method that needs no data sees exactly one of these, with no gradients and no samples.
    """

    groups: tuple[Group, ...]
    """The groups to score. Their members are parameters only: buffers are left out."""
    parameters: Mapping[str, Tensor]
    """The parameters of all members, detached, by canonical name."""
    gradients: Mapping[str, Tensor]
    """Gradients of the micro-batch's mean loss, for the members that the methods asked for."""
    samples: int
    seed: int
    look: Look | None = None
    """What else can be found out about the micro-batch; None for methods that need no data."""

    @property
    def looked(self) -> Look:
        """The look that a method which needs data has."""
        assert self.look is not None
        return self.look
