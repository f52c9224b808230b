"""`fisher`: how much the network's own answers depend on a unit. No labels."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated

from prunecli.errors import UsageError
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import with_count
from prunecli.importance.gates import OnGates
from prunecli.importance.registry import Needs, method


@method(
    "fisher",
    needs=Needs.GATES,
    passes="draws",
    source="this project, after Theis et al., 2018 (Fisher pruning)",
)
@dataclass(frozen=True)
class Fisher(OnGates):
    """Fisher information in the unit's gate, of the answers that the network gives at a high temperature.

    score = mean over samples b and draws y of (d/dz log p_b(y))^2 at z = 1, with p = softmax(logits / T)
    and y drawn from p: twice the second-order estimate of the KL divergence, at temperature T, that
    removing the unit causes. It is `taylor-fo-fg` with labels drawn from the network itself. A sample
    that the network has learnt by heart has next to no gradients at T = 1; at T = 4 it has.
    """

    temperature: Annotated[float, "What logits are divided by before labels are drawn."] = 4.0
    draws: Annotated[int, "How many labels are drawn per sample."] = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            UsageError: Naming the argument.
        """
        if self.draws < 1:
            raise UsageError(f"`draws` is a whole number from 1 on, not {self.draws}.")
        if not 0 < self.temperature < inf:
            raise UsageError(f"`temperature` is a number above 0, not {self.temperature}.")

    def observe(self, batch: Observed) -> State:
        """Return the sums over samples of mean squares over draws, and how many samples there were."""
        energies = batch.looked.answer_energies(self.temperature, self.draws, batch.seed)
        return State({group.name: with_count(energies[group.name], batch.samples) for group in batch.groups})

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the mean over samples."""
        return {name: energy / samples for name, (energy, samples) in total.values.items()}
