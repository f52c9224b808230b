"""`i-spasp-train`: which units rebuild what the next layer makes of all, with its weights trained along."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from math import floor
from typing import Annotated

from prunecli.errors import UsageError
from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.draws import draws_for
from prunecli.importance.grams import grams_of, read_by_group
from prunecli.importance.readings import refuse_unread
from prunecli.importance.registry import Needs, method
from prunecli.importance.sparse_columns import (
    Course,
    Start,
    Step,
    Truncate,
    contributions,
    learn,
)


class Output(str, Enum):
    """Which weights the layers behind the cut have."""

    TRAINED = "trained"
    ORIGINAL = "original"


@method(
    "i-spasp-train",
    needs=Needs.ACTIVATIONS,
    passes="1",
    source="i-SpaSP (arXiv 2112.04905) with a learning step",
    while_training=False,
)
@dataclass(frozen=True)
class ISpaSPTrain:
    """Units that rebuild the next layer's outputs once its weights are trained for that; `prune` trains them.

    score = [the unit is selected] + c / (2 max c), with c the norm of the unit's columns of the dense
    weight, each times the norm of what it reads. The selection is of size s = `keep` * width: a plan that
    keeps s units of each group (`--keep` with `--scope layer`) keeps those. `prune` sets both, and gives
    the layers behind the cut the trained weights. Within the selection, and outside it, c decides.

    For a layer that makes U = W H, weights W_t with columns of s units, and f = 1/2 |W_t H - U|^2, each of
    the `iterations`: I. the gradient G = (W_t H - U) H^T; II. candidates: the units selected so far, and
    the s others with the largest gradients; III. a step down G on the candidates, as far as f falls
    (`step=closed-form`: least squares on them); IV. the s largest of these are selected; V. `inner` more
    steps on them. It stops when the selection stays and f changes by less than a millionth.

    The paper's: two layers, the steps, 5 inner steps. Its start from the dense weights has no gradient,
    and is refused: weights start at zero, or at s random units (`start=random`), as in its code. Plain
    norms in IV. ignore how large activations are, and select wrong units from a random start or with
    least squares: there `truncate=auto` weighs each column with the norm of what it reads.

    Ours: convolutions (columns are patches as the taps see them; a unit has all its taps), several layers
    that read one group (their outputs are stacked), and units with many columns behind a flatten. H is
    never kept: all steps need H H^T only, a matrix of columns x columns per layer. Biases stay.
    """

    keep: Annotated[float, "Share of the units of each group to select."] = 0.5
    iterations: Annotated[int, "How many iterations at most."] = 20
    inner: Annotated[int, "Steps on the units selected, in each iteration."] = 5
    step: Annotated[Step, "How weights on the candidates are found."] = Step.LINE_SEARCH
    start: Annotated[Start, "The weights before the first iteration; `original` is refused."] = Start.ZERO
    truncate: Annotated[Truncate, "By what the units are selected among the candidates."] = Truncate.AUTO
    output: Annotated[Output, "Which weights the layers behind the cut get from `prune`."] = Output.TRAINED

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            UsageError: Naming the argument.
        """
        if not 0 < self.keep <= 1:
            raise UsageError(f"`keep` is a share above 0 and at most 1, not {self.keep}.")
        _ = self.course

    @property
    def course(self) -> Course:
        """How the iterations go."""
        return Course(self.iterations, self.inner, self.step, self.start, self.truncate)

    @property
    def trains_readers(self) -> bool:
        """Whether the layers behind the cut are to have the trained weights."""
        return self.output is Output.TRAINED

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return nothing: activations and the weights of calls are read, not parameters."""
        return ()

    def refuse(self, group: Group) -> str | None:
        """Refuse units whose readers cannot be looked at."""
        return refuse_unread(group)

    def observe(self, batch: Observed) -> State:
        """Return the Gram matrices; beside them, the same each time, the readers' weights and the draws."""
        found = grams_of(batch.looked, batch.groups)
        draws = {group.name: draws_for(group, batch.seed) for group in batch.groups}
        return State(found.values, maxima={**found.maxima, **draws})

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return scores that rank the units selected before all others."""
        scores = {}
        for name, read in read_by_group(total).items():
            readers, draws = [each.reader for each in read.values()], total.maxima[name]
            learned = learn(readers, len(draws), self._size(len(draws)), self.course, draws)
            dense = contributions(readers, len(draws))
            scores[name] = learned.support + dense / (2 * dense.max().clamp(min=_TINY))
        return scores

    def notes(self, total: State) -> tuple[str, ...]:
        """Say where a default was not good enough."""
        return self.course.notes

    def _size(self, width: int) -> int:
        return max(floor(Fraction(repr(self.keep)) * width + Fraction(1, 2)), 1)


_TINY = 1e-300
"""What norms of nothing are divided by."""
