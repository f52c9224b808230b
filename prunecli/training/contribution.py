"""`contribution`: train, cut the lowest units of every linear layer, recover, again and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from prunecli.budget import Budget, Currency
from prunecli.errors import BudgetError, NotPrunableError, UsageError
from prunecli.graph.structure import Kept
from prunecli.importance.meter import Meter
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import find_method
from prunecli.importance.undisturbed import ScoreBN
from prunecli.plan import Scope
from prunecli.strict_json import Json, from_plain, to_plain
from prunecli.training.narrowing import Narrowing, Widths
from prunecli.training.schedule import Schedule, schedule
from prunecli.training.training import Phase, Training


@dataclass(frozen=True)
class Cut:
    """One cut, with what the test data say of the network right behind it."""

    epoch: int
    """Epochs done before it."""
    units: int
    """Units left, of those that may go."""
    widths: Widths
    loss: float | None = None
    top1: float | None = None


@schedule(
    "contribution",
    source="rank-based train-time pruning (USC)",
    prunes=True,
    usual={"budget": {"scope": "layer"}, "recipe": {"epochs": 100, "lr_schedule": "constant"}},
)
@dataclass(eq=False)
class ByContribution(Schedule):
    """Train; then cut the lowest units of every linear layer and recover, again and again.

    The first cut comes after `warm` epochs, the others after `every` epochs of recovery each, in which a
    new optimizer trains what is left. Units are ranked within their layer, by what the method (unless you
    choose another: `contribution`) made of all minibatches since the cut before. Of N units those ranked
    behind max(1, (1 - percent / 100) N) go: 50 -> 45 -> 40 -> 36 -> 32 -> 28 -> 25 -> 22 -> 19 -> 17.

    Cuts go on until the budget is met (`--target units=33%`, `--keep 0.33` or `prune`, all counting the
    units that may go), or `--epochs` are over: the last cut comes before that, and its recovery is trained
    to the end. A cut is never made smaller to meet the budget exactly.

    Neurons may go: units that linear layers make and linear layers read. Convolutions, what they read, and
    the outputs of the network stay; `conv` lets all units go that a linear layer or a convolution reads.
    Unless you set them: `--epochs 100`, `--lr-schedule constant`.
    """

    warm: Annotated[int, "Epochs before the first cut."] = 30
    every: Annotated[int, "Epochs of recovery behind each cut."] = 15
    percent: Annotated[float, "Share of each layer's units that goes at each cut, in percent."] = 10.0
    prune: Annotated[float, "Share of the units that are to go in the end; 0: as the budget says."] = 0.0
    conv: Annotated[bool, "Cut units of convolutions too, which the paper does not."] = False

    meter: Meter | None = field(default=None, init=False)
    """None where no further cut comes."""
    cuts: list[Cut] = field(default_factory=list, init=False)

    def check(self, training: Training) -> None:
        """Refuse what leaves no time for the cuts, nothing to cut, or cannot be scored."""
        if self.warm < 1 or self.every < 1:
            raise UsageError("`warm` and `every` are at least 1 epoch: scores are made while training.")
        if not 0 < self.percent < 100 or not 0 <= self.prune < 1:
            raise UsageError("`percent` is above 0 and below 100; `prune` is from 0 to below 1, as in 0.675.")
        if self.prune and self.wishes.budget is not None:
            text = f"`--schedule-arg prune={self.prune}` and `{self.wishes.budget.text}`"
            raise UsageError(f"{text} are two budgets; give one of them.")
        if self.wishes.scope is not Scope.LAYER:
            raise UsageError("This schedule ranks units within their layer: leave out `--scope global`.")
        narrowing = self._narrowing(training)
        if not narrowing.dense:
            raise NotPrunableError(
                "No linear layer feeds another one and may be cut; `prunecli inspect` lists what may. "
                "`--schedule-arg conv=true` lets units of convolutions go too."
            )
        self._check_time(narrowing, training.recipe.epochs)
        self._renew_meter(training)
        assert self.meter is not None
        if self.meter.reads_gradients and training.recipe.accumulate > 1:
            raise UsageError(
                f"`{self.method}` scores by the gradients of single minibatches: leave out `--accumulate`."
            )

    def first_phase(self, training: Training) -> Phase:
        """Return the epochs before the first cut."""
        return Phase("dense", self.warm)

    def next_phase(self, training: Training) -> Phase | None:
        """Cut, and recover; or end."""
        if self.meter is None:
            return None
        self._cut(training, self.meter)
        return Phase(f"recovery {len(self.cuts)}", self.every)

    def may_stop_early(self, training: Training) -> bool:
        """Not before the last cut: the others come after so many epochs."""
        return self.meter is None

    @property
    def looks_at_samples(self) -> bool:
        """Whether the method does, while a further cut comes."""
        return self.meter is not None and self.meter.looks_again

    def after_backward(self, training: Training, batch: MicroBatch) -> None:
        """Score the minibatch."""
        if self.meter is not None:
            self.meter.observe(batch)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is being added up."""
        return self.meter.tensors() if self.meter is not None else {}

    def plain(self) -> dict[str, Json]:
        """Return the cuts, and the rest of what is being added up."""
        return {
            "cuts": to_plain(self.cuts),
            "meter": self.meter.plain() if self.meter is not None else None,
        }

    def load(self, training: Training, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on."""
        self.cuts = [from_plain(Cut, cut) for cut in plain["cuts"]]
        if plain["meter"] is not None:
            self._renew_meter(training)
            assert self.meter is not None
            self.meter.load(tensors, plain["meter"])

    def facts(self, training: Training) -> dict[str, Json]:
        """Return how wide layers were after each cut, and how good before it, behind it and recovered."""
        narrowing = self._narrowing(training)
        dense, left = sum(narrowing.dense.values()), narrowing.left(training.kept)
        return {
            "cuts": len(self.cuts),
            "units_that_may_go": dense,
            "units_left_of_them": left,
            "share_gone": 1 - left / dense,
            "budget_met": narrowing.is_met(training.kept) if narrowing.budget is not None else None,
            "by_cut": list(self._told(training, dense)),
        }

    def _told(self, training: Training, dense: int) -> Iterator[Json]:
        """Yield one row per cut."""
        rows = training.history
        ends = [*(cut.epoch for cut in self.cuts[1:]), len(rows)]
        for cut, end in zip(self.cuts, ends, strict=True):
            before, after = rows[cut.epoch - 1], rows[end - 1]
            yield {
                "epoch": cut.epoch,
                "units": cut.units,
                "share_gone": 1 - cut.units / dense,
                "widths": dict(cut.widths),
                "train_top1": {"before": before.top1, "recovered": after.top1},
                "test_top1": {"before": before.test_top1, "cut": cut.top1, "recovered": after.test_top1},
                "test_loss": {"before": before.test_loss, "cut": cut.loss, "recovered": after.test_loss},
            }

    def _cut(self, training: Training, meter: Meter) -> None:
        """Take out the lowest units of every layer, and measure what is left."""
        narrowing = self._narrowing(training)
        before, widths = narrowing.left(training.kept), narrowing.after(len(self.cuts) + 1)
        training.drop(self._choose(training, meter, widths))
        training.shrink()
        found = training.evaluate(training.judged)
        loss, top1 = (found.loss, found.top1) if found is not None else (None, None)
        left = narrowing.left(training.kept)
        cut = Cut(training.place.epoch, left, widths, loss, top1)
        self.cuts.append(cut)
        training.notes.append(_in_words(len(self.cuts), before, cut))
        is_late = training.place.epoch + self.every >= training.recipe.epochs
        if is_late or narrowing.is_met(training.kept) or len(self.cuts) >= narrowing.most:
            self.meter = None
        else:
            self._renew_meter(training)

    def _choose(self, training: Training, meter: Meter, widths: Widths) -> Kept:
        """Return which units stay: the highest of each layer. Of equals the first go first."""
        scores = training.dense_scores(meter.scores(), self.method)
        chosen = {}
        for name, width in widths.items():
            stays = np.zeros(len(scores[name]), dtype=bool)
            stays[np.argsort(scores[name].numpy(), kind="stable")[-width:]] = True
            chosen[name] = stays
        return chosen

    def _check_time(self, narrowing: Narrowing, epochs: int) -> None:
        """Make sure that the budget can be met, and in the epochs there are."""
        cuts = narrowing.cuts_to_budget if narrowing.budget is not None else 1
        if cuts is None:
            dense, lowest = (_listed(narrowing.after(cuts)) for cuts in (0, narrowing.most))
            raise BudgetError(
                f"The budget cannot be met: of layers of {dense} units this schedule leaves {lowest}. Let "
                "more stay, loosen the constraints, or cut convolutions too (`--schedule-arg conv=true`)."
            )
        if cuts == 0:
            raise UsageError("The network meets the budget as it is; ask for less to stay.")
        last = self.warm + (cuts - 1) * self.every
        if last >= epochs:
            shown = f"the budget needs {cuts} cuts, " if cuts > 1 else ""
            raise UsageError(
                f"{epochs} epochs are too few: {shown}the first cut comes after epoch {self.warm} (`warm`)"
                + (f", the last after epoch {last} (`every`)" if cuts > 1 else "")
                + f". Raise `--epochs` to {last + 1} or more, or lower these (`--schedule-arg`)."
            )

    @property
    def method(self) -> str:
        """The method that scores."""
        return self.wishes.method or "contribution"

    @property
    def _budget(self) -> Budget | None:
        if not self.prune:
            return self.wishes.budget
        stays = 1 - Fraction(repr(self.prune))
        return Budget(Currency.UNITS, stays, of_free=False, text=f"prune={self.prune}")

    def _narrowing(self, training: Training) -> Narrowing:
        assert training.structure is not None
        return Narrowing(training.structure, self.wishes.constraints, self._budget, self.percent, self.conv)

    def _renew_meter(self, training: Training) -> None:
        """Start to add up anew, on the model as it is now."""
        assert training.now is not None
        arguments = dict(self.wishes.method_args or {})
        if self.conv and "conv" in find_method(self.method).arguments:
            arguments.setdefault("conv", True)
        self.meter = Meter(
            training.model,
            training.now,
            self.method,
            self.wishes.loss_fn,
            arguments,
            self.wishes.seed + len(self.cuts),  # chance is drawn anew each time
            ScoreBN.TRAIN,
            groups=self._narrowing(training).dense,
        )


def _in_words(number: int, before: int, cut: Cut) -> str:
    """Say what a cut did.

    >>> _in_words(2, 72, Cut(45, 64, {"1": 40, "3": 24}, 0.3, 0.912))
    'cut 2: 72 -> 64 units (40-24), test top-1 91.20 % before recovery'
    """
    judged = f", test loss {cut.loss:.4g} before recovery" if cut.loss is not None else ""
    if cut.top1 is not None:
        judged = f", test top-1 {100 * cut.top1:.2f} % before recovery"
    return f"cut {number}: {before} -> {cut.units} units ({_listed(cut.widths)}){judged}"


def _listed(widths: Widths) -> str:
    return "-".join(map(str, widths.values()))
