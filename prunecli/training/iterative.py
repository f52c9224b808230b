"""`iterative`: score while training, remove a few units, go on (Molchanov et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from prunecli.budget import Budget, Currency, check_reach, feasible, make_plan, parse_amount
from prunecli.budget.amounts import rounded, units_of
from prunecli.errors import UsageError
from prunecli.graph.structure import Kept
from prunecli.importance import About, Scores
from prunecli.importance.meter import Meter
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.undisturbed import ScoreBN
from prunecli.strict_json import Json
from prunecli.training.schedule import Schedule, schedule
from prunecli.training.training import Phase, Training


@schedule("iterative", source="Molchanov et al., 2019", prunes=True)
@dataclass(eq=False)
class Iterative(Schedule):
    """Score while fine-tuning, remove the lowest units every so many minibatches, until the budget is met.

    Every `every` minibatches, while units are above the budget and the mean loss since the last pruning
    is at most `max_loss`: I = the mean over these minibatches of what the method makes of each; then
    I' = momentum * I' + (1 - momentum) * I (the first time: I' = I); the lowest live units by I' go. How
    many: `units` each time, or so many that `steps` prunings meet the budget. The optimizer forgets the
    units that go, and at the budget everything. Training goes on to the last epoch.

    Pruning stops for good when the mean loss exceeds `max_loss`. Exactly as many live units go as planned;
    those gone before never come back.
    """

    every: Annotated[int, "Minibatches between two prunings, which they are scored on."] = 30
    steps: Annotated[int, "Prunings until the budget is met; 0: as many as `units` needs."] = 0
    units: Annotated[str, "Units that go each time: a number, or a share of all units."] = "2%"
    momentum: Annotated[float, "Of the scores; 0: only the last minibatches count."] = 0.9
    max_loss: Annotated[
        float, "Stop pruning for good when the mean loss since the last exceeds this; 0: never."
    ] = 0.0
    fixed: Annotated[bool, "Score once, before the first pruning, and never again."] = False
    tunes: Annotated[bool, "Train meanwhile; false: the weights stay as they are, in eval mode."] = True
    physical_every: Annotated[
        int, "Prunings after which silenced units are taken out for real; 0: only at the end."
    ] = 1

    meter: Meter | None = field(default=None, init=False)
    averaged: dict[str, Tensor] = field(default_factory=dict, init=False)
    """I', per dense unit."""
    seen: int = field(default=0, init=False)
    """Minibatches since the last pruning."""
    loss: float = field(default=0.0, init=False)
    """Sum of their losses."""
    prunings: int = field(default=0, init=False)
    is_done: bool = field(default=False, init=False)
    gave_up: bool = field(default=False, init=False)
    """Whether the loss became too large before the budget was met."""
    curve: list[tuple[int, float]] = field(default_factory=list, init=False)
    """(units, mean loss) at each pruning, before it."""

    def check(self, training: Training) -> None:
        """Refuse what cannot meet the budget, or cannot be scored while training."""
        if self.wishes.budget is None:
            raise UsageError("Say how much may stay: `--keep 0.5` or `--target macs=0.5`.")
        if self.every < 1 or self.steps < 0 or self.physical_every < 0:
            raise UsageError(
                "`--prune-every` is at least 1; `--steps` and `--physical-every` are at least 0."
            )
        if not 0 <= self.momentum < 1:
            raise UsageError(f"`--score-momentum {self.momentum}` is not from 0 to below 1.")
        self._renew_meter(training)
        if self.meter is not None and self.meter.reads_gradients and training.recipe.accumulate > 1:
            raise UsageError(
                f"`{self.method}` scores by the gradients of single minibatches: leave out `--accumulate`."
            )
        assert training.structure is not None
        check_reach(training.structure, self.wishes.budget, self.wishes.constraints)
        prunings, there = self._prunings_known(training), training.recipe.epochs
        needed = (prunings or 1) * self.every
        if self.tunes and needed > there * training.steps_per_epoch:
            raise UsageError(
                f"The budget needs {prunings or 'one or more'} prunings, {needed:,} minibatches; "
                f"{there} epochs have {there * training.steps_per_epoch:,}. Raise `--epochs`, or "
                "let more units go each time, or fewer minibatches lie between."
            )

    def first_phase(self, training: Training) -> Phase:
        """Return one phase: all epochs, or as many as pruning needs where nothing is trained."""
        if self.tunes:
            return Phase("pruning and fine-tuning", training.recipe.epochs)
        assert training.structure is not None
        most = ceil(training.structure.unit_count / self._units_per_step(training))
        minibatches = (self._prunings_known(training) or most) * self.every
        return Phase("pruning", ceil(minibatches / training.steps_per_epoch), "constant", trains=False)

    def next_phase(self, training: Training) -> Phase | None:
        """End; what is silenced and still there goes."""
        training.shrink()
        return None

    def may_stop_early(self, training: Training) -> bool:
        """Not before the budget is met."""
        return self.is_done

    @property
    def looks_at_samples(self) -> bool:
        """Whether the method does, while it scores."""
        return self._scores_now and self.meter is not None and self.meter.looks_again

    def after_backward(self, training: Training, batch: MicroBatch) -> None:
        """Score the minibatch."""
        if self._scores_now:
            assert self.meter is not None
            self.meter.observe(batch)

    def after_step(self, training: Training, loss: float) -> None:
        """Prune when it is time."""
        if self.is_done:
            return
        self.seen += 1
        self.loss += loss
        if self.seen == self.every:
            self._prune(training, self.loss / self.seen)
            self.seen, self.loss = 0, 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return scores, and what is being added up."""
        summed = self.meter.tensors() if self.meter is not None else {}
        return {
            **{f"averaged.{name}": values for name, values in self.averaged.items()},
            **{f"meter.{name}": tensor for name, tensor in summed.items()},
        }

    def plain(self) -> dict[str, Json]:
        """Return the counters."""
        return {
            "meter": self.meter.plain() if self.meter is not None else None,
            "seen": self.seen,
            "loss": self.loss,
            "prunings": self.prunings,
            "is_done": self.is_done,
            "gave_up": self.gave_up,
            "curve": self.curve,
        }

    def load(self, training: Training, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on."""
        parts: dict[str, dict[str, Tensor]] = {"averaged": {}, "meter": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = tensor
        self.averaged = parts["averaged"]
        for name in ("seen", "loss", "prunings", "is_done", "gave_up"):
            setattr(self, name, plain[name])
        if plain["meter"] is not None:
            self._renew_meter(training)
            assert self.meter is not None
            self.meter.load(parts["meter"], plain["meter"])
        self.curve = [(units, loss) for units, loss in plain["curve"]]

    def facts(self, training: Training) -> dict[str, Json]:
        """Return the loss against the units left, and whether the budget was met."""
        return {
            "prunings": self.prunings,
            "budget_met": self.is_done and not self.gave_up,
            "loss_by_units": [[units, loss] for units, loss in self.curve],
        }

    @property
    def _scores_now(self) -> bool:
        return not self.is_done and not (self.fixed and self.averaged)

    def _prune(self, training: Training, mean_loss: float) -> None:
        """Remove the lowest units, if the loss allows it."""
        before = training.unit_count
        self.curve.append((before, mean_loss))
        if self.max_loss and mean_loss > self.max_loss:
            training.notes.append(f"pruning stopped at {before} units: mean loss {mean_loss:.4g}")
            self.is_done = self.gave_up = True
            self._finish(training)
            return
        if self._scores_now:
            self._average(training)
        kept, is_last = self._choose(training)
        training.drop(kept)
        self.prunings += 1
        if is_last:
            training.notes.append(f"budget met at {training.unit_count} units, pruning {self.prunings}")
            self.is_done = True
            self._finish(training)
        elif self.physical_every and self.prunings % self.physical_every == 0:
            training.shrink()
        if not self.is_done:
            self._renew_meter(training)

    def _finish(self, training: Training) -> None:
        if self.physical_every:
            training.shrink()
        training.forget_momentum()
        self.meter = None
        if not self.tunes:  # nothing is left to do
            training.end_phase()

    def _average(self, training: Training) -> None:
        """Let the scores of these minibatches into the running average."""
        assert self.meter is not None
        new = training.dense_scores(self.meter.scores(), self.method)
        if not self.averaged:
            self.averaged = new
            return
        self.averaged = {
            name: torch.where(
                new[name].isfinite(), self.momentum * old + (1 - self.momentum) * new[name], -torch.inf
            )
            for name, old in self.averaged.items()
        }

    def _choose(self, training: Training) -> tuple[Kept, bool]:
        """Return which units stay now, and whether that meets the budget."""
        wanted = self.wishes.budget
        assert wanted is not None
        final = self._plan(training, wanted)
        if self.steps and self.prunings + 1 >= self.steps:
            return final, True
        step = self._plan(training, self._next_budget(training, wanted))
        is_enough = self._count(step) <= self._count(final)
        return (final, True) if is_enough else (step, False)

    def _next_budget(self, training: Training, wanted: Budget) -> Budget:
        """Return what the next pruning aims at."""
        assert training.structure is not None
        reach = feasible(training.structure, wanted, self.wishes.constraints)
        if self.steps:
            gone = (reach.dense - max(reach.wanted, reach.lowest)) * (self.prunings + 1) // self.steps
            return Budget.parse(f"{reach.currency.value}={reach.dense - gone}")
        left = max(training.unit_count - self._units_per_step(training), 1)
        lowest = feasible(training.structure, Budget.parse("units=1"), self.wishes.constraints).lowest
        return Budget.parse(f"units={max(left, lowest)}")

    def _plan(self, training: Training, budget: Budget) -> Kept:
        assert training.structure is not None
        scores = Scores(About(self.method, seed=self.wishes.seed), self.averaged)
        plan = make_plan(
            training.structure,
            scores,
            budget=budget,
            scope=self.wishes.scope,
            rank=self.wishes.order,
            constraints=self.wishes.constraints,
        )
        kept = plan.kept()
        return {name: stays & training.kept[name] for name, stays in kept.items()}

    @staticmethod
    def _count(kept: Kept) -> int:
        return sum(int(np.count_nonzero(stays)) for stays in kept.values())

    def _units_per_step(self, training: Training) -> int:
        assert training.structure is not None
        amount = parse_amount(self.units, "--step-units")
        return max(rounded(units_of(amount, training.structure.unit_count)), 1)

    def _prunings_known(self, training: Training) -> int | None:
        """Return how many prunings meet the budget; None where that depends on which units go."""
        if self.steps:
            return self.steps
        assert training.structure is not None
        wanted = self.wishes.budget
        assert wanted is not None
        if wanted.currency is not Currency.UNITS:
            return None
        reach = feasible(training.structure, wanted, self.wishes.constraints)
        return max(ceil((reach.dense - reach.wanted) / self._units_per_step(training)), 1)

    @property
    def method(self) -> str:
        """The method that scores."""
        return self.wishes.method or "taylor-fo"

    def _renew_meter(self, training: Training) -> None:
        """Start to add up anew, on the model as it is now."""
        assert training.now is not None
        self.meter = Meter(
            training.model,
            training.now,
            self.method,
            self.wishes.loss_fn,
            self.wishes.method_args,
            self.wishes.seed + self.prunings,  # chance is drawn anew each time
            ScoreBN.TRAIN if self.tunes else ScoreBN.EVAL,
        )
