"""`network-slimming`: press scales of normalisations to zero, cut by them, train on (Liu et al., 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from prunecli.budget import check_reach, make_plan
from prunecli.budget.limits import find_limits
from prunecli.errors import NotPrunableError, UsageError
from prunecli.graph.structure import Group, Kept
from prunecli.importance import About, Scores, build_methods
from prunecli.importance.meter import Meter
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Method
from prunecli.strict_json import Json
from prunecli.training.schedule import Schedule, schedule
from prunecli.training.training import Phase, Training

METHOD = "network-slimming"


@schedule("network-slimming", source="Liu et al., 2017", prunes=True, usual={"budget": {"rank": "score"}})
@dataclass(eq=False)
class NetworkSlimming(Schedule):
    """Press the scales of normalisations towards zero while training, cut the smallest, train on.

    For `sparse` epochs, `penalty` * sign(gamma) is added to the gradient of every scale gamma behind a layer
    whose units may go: the subgradient of `penalty` * sum of |gamma|. Then the units of the smallest |gamma|
    over the whole network go, by the method `network-slimming`, until the budget is met; a new optimizer
    trains what is left for the rest of `--epochs`.

    Every layer whose units may go needs a normalisation with a scale behind it; leave others alone with
    `--ignore`. Unless you set it: `--rank score`, also for budgets in MACs or parameters.
    """

    penalty: Annotated[float, "What weighs the sum of absolute scales in the loss."] = 1e-4
    sparse: Annotated[int, "Epochs with the penalty, before the cut; 0: half of all."] = 0

    scales: dict[str, list[float]] = field(default_factory=dict, init=False)
    """Group -> the sum of the scales behind each of its units, at the cut."""
    is_cut: bool = field(default=False, init=False)
    pressed: tuple[str, ...] = field(default=(), init=False)
    """The names of the scales that the penalty acts on."""

    def check(self, training: Training) -> None:
        """Refuse what leaves no time for one of the phases, has no budget, or no scales."""
        if self.wishes.budget is None:
            raise UsageError("Say how much may stay: `--keep 0.5` or `--target macs=0.5`.")
        if self.wishes.method not in (None, METHOD):
            raise UsageError(
                f"This schedule cuts by its own method: leave out `--method {self.wishes.method}`."
            )
        if self.penalty <= 0:
            raise UsageError(f"`--schedule-arg penalty={self.penalty}` must be above 0.")
        epochs = training.recipe.epochs
        if not 0 < self._sparse(training) <= epochs:
            raise UsageError(
                f"`--schedule-arg sparse={self.sparse}`: the cut comes within the {epochs} epochs there are."
            )
        assert training.structure is not None
        check_reach(training.structure, self.wishes.budget, self.wishes.constraints)
        for group in self._groups(training):
            why = self._method.refuse(group)
            if why is not None:
                raise NotPrunableError(
                    f"`{group.name}` {why}, so no penalty can press on it. Leave it alone with "
                    f"`--ignore {group.name}`, or choose another schedule."
                )

    def first_phase(self, training: Training) -> Phase:
        """Return the epochs with the penalty."""
        return Phase("sparse training", self._sparse(training))

    def next_phase(self, training: Training) -> Phase | None:
        """Cut, and train what is left; or end."""
        if self.is_cut:
            return None
        before = training.unit_count
        training.drop(self._choose(training))
        training.shrink()
        self.is_cut = True
        training.notes.append(f"cut: {before} -> {training.unit_count} units")
        return Phase("fine-tuning", training.recipe.epochs - self._sparse(training))

    @torch.no_grad()
    def before_step(self, training: Training) -> None:
        """Add the subgradient of the penalty."""
        if self.is_cut:
            return
        for scale in self._scales(training):
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.penalty)

    def plain(self) -> dict[str, Json]:
        """Return where it stands."""
        return {"is_cut": self.is_cut, "scales": self.scales}

    def load(self, training: Training, tensors: Any, plain: Any) -> None:
        """Go on."""
        self.is_cut = plain["is_cut"]
        self.scales = {name: list(values) for name, values in plain["scales"].items()}

    def facts(self, training: Training) -> dict[str, Json]:
        """Return the scales that the cut went by, so that a histogram shows what the penalty did."""
        return {"penalty": self.penalty, "sparse_epochs": self._sparse(training), "scales": self.scales}

    @property
    def _method(self) -> Method:
        method: Method = build_methods([METHOD], {})[METHOD]
        return method

    def _sparse(self, training: Training) -> int:
        return self.sparse or -(-training.recipe.epochs // 2)

    def _groups(self, training: Training) -> Iterator[Group]:
        """Yield the groups that may lose units."""
        assert training.structure is not None
        limits = find_limits(training.structure, self.wishes.constraints)
        for group in training.structure.groups:
            if limits[group.name].allowed[-1] < group.width:
                yield group

    def _scales(self, training: Training) -> Iterator[Tensor]:
        """Yield the scales behind the layers that may lose units."""
        if not self.pressed:
            members = (member for group in self._groups(training) for member in self._method.members(group))
            self.pressed = tuple(dict.fromkeys(member.tensor for member in members))
        parameters = dict(training.model.named_parameters())
        return (parameters[name] for name in self.pressed)

    def _choose(self, training: Training) -> Kept:
        """Return which units stay: no more go than the budget asks for."""
        assert training.structure is not None
        assert self.wishes.budget is not None
        names = {group.name for group in self._groups(training)}
        meter = Meter(training.judged, training.structure, METHOD, None, groups=names)
        meter.observe(MicroBatch((), None, 0))
        found = meter.scores()
        self.scales = {name: values.tolist() for name, values in found.items()}
        whole = {  # they stay, whatever they score
            group.name: torch.zeros(group.width, dtype=torch.float64)
            for group in training.structure.groups
            if group.name not in names
        }
        return make_plan(
            training.structure,
            Scores(About(METHOD, seed=self.wishes.seed), {**found, **whole}),
            budget=self.wishes.budget,
            scope=self.wishes.scope,
            rank=self.wishes.order,
            constraints=self.wishes.constraints,
        ).kept()
