"""`imp`: train, set the smallest weights to zero, rewind the others, repeat (Frankle and Carbin, 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any

import torch
from torch import Tensor

from prunecli.budget.amounts import rounded
from prunecli.errors import NotPrunableError, UsageError
from prunecli.graph.copying import named_tensors
from prunecli.history import EpochRow
from prunecli.strict_json import Json, from_plain, to_plain
from prunecli.training.schedule import Schedule, schedule
from prunecli.training.training import Phase, Training
from prunecli.weights import Selection, prunable_weights


@dataclass(frozen=True)
class Round:
    """One training from the start, and what came of it."""

    weights: int
    """Weights of the prunable layers that were not zero in it."""
    share: float
    """Of all of them."""
    collapsed: tuple[str, ...] = ()
    """Layers without any weight left."""
    epochs: int = 0
    loss: float | None = None
    test_loss: float | None = None
    test_top1: float | None = None


@schedule("imp", source="Frankle and Carbin, 2019; rewinding: Frankle et al., 2020", prunes=True)
@dataclass(eq=False)
class IterativeMagnitude(Schedule):
    """Train, set the smallest weights to zero for good, rewind the others to the start; again and again.

    Every round is a whole training of `--epochs` with a new optimizer. Behind each but the last, `percent` of
    the weights still there go: those with the smallest |w| over all layers together, exactly so many, of
    equals the first. What stays goes back to what it was at the start, or after `rewind` epochs of the
    first round, and the next round begins. There are `rounds` prunings, so one round more.

    Pruned weights are zero, and so are their gradients and what the optimizer remembers of them, through
    every step. The result is a network of the same size with zeros in it: no unit leaves, and it is not
    faster. Weights of convolutions and linear layers are pruned, biases and normalisations never, nor the
    layers that the network's outputs come from, unless `classifier` says so.
    """

    rounds: Annotated[int, "Prunings."] = 5
    percent: Annotated[float, "Share of the weights left that goes at each, in percent."] = 20.0
    rewind: Annotated[int, "Epochs of the first round whose weights are gone back to; 0: the start."] = 0
    classifier: Annotated[bool, "Prune the layers that the outputs come from too."] = False

    start: dict[str, Tensor] = field(default_factory=dict, init=False)
    """Every parameter and buffer, as it is gone back to."""
    done: list[Round] = field(default_factory=list, init=False)
    row: EpochRow | None = field(default=None, init=False)
    """The epoch that has just ended."""

    def check(self, training: Training) -> None:
        """Refuse settings that contradict each other, and networks without such weights."""
        if self.rounds < 1 or not 0 < self.percent < 100:
            raise UsageError("`rounds` is at least 1; `percent` is above 0 and below 100.")
        if self.wishes.budget is not None:
            share = (1 - self.percent / 100) ** self.rounds
            raise UsageError(
                f"`--keep` and `--target` say how many units stay, and this schedule removes none: "
                f"leave it out. `rounds={self.rounds}` leaves {share:.1%} of the weights."
            )
        if self.wishes.method is not None:
            raise UsageError(f"This schedule goes by |w|: leave out `--method {self.wishes.method}`.")
        epochs, patience = training.recipe.epochs, training.recipe.patience
        if not 0 <= self.rewind < max(epochs, 1) or (patience is not None and patience < self.rewind):
            raise UsageError(
                f"`--schedule-arg rewind={self.rewind}`: the first round has {epochs} epochs, and may end "
                "earlier by `--patience`. Go back to one that it has for sure."
            )
        if not self._names(training):
            raise NotPrunableError(
                "No convolution or linear layer is left to prune. `--schedule-arg classifier=true` prunes "
                "those that the outputs come from."
            )

    def first_phase(self, training: Training) -> Phase:
        """Return the round of the dense network."""
        if self.rewind == 0:
            self._remember(training)
        return self._phase(training)

    def next_phase(self, training: Training) -> Phase | None:
        """Prune and rewind; or end."""
        self.done.append(self._told(training))
        if len(self.done) > self.rounds:
            return None
        masks = self._choose(training)
        self._rewind(training)
        training.set_masks(masks)
        return self._phase(training)

    def after_epoch(self, training: Training, row: EpochRow) -> EpochRow:
        """Remember what is gone back to, and how the round went."""
        self.row = row
        is_there = training.place.phase_number == 1 and training.place.phase_epoch == self.rewind
        if is_there and self.rewind:
            self._remember(training)
        return row

    def tensors(self) -> dict[str, Tensor]:
        """Return what is gone back to."""
        return self.start

    def plain(self) -> dict[str, Json]:
        """Return how the rounds went."""
        return {"done": to_plain(self.done)}

    def load(self, training: Training, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on."""
        on = {name: tensor.device for name, tensor in named_tensors(training.model).items()}
        self.start = {name: tensor.to(on[name]) for name, tensor in tensors.items()}
        self.done = [from_plain(Round, each) for each in plain["done"]]

    def facts(self, training: Training) -> dict[str, Json]:
        """Return the rounds: how many weights each had, and how good it became."""
        left = {"weights_left": self.done[-1].weights, "share_left": self.done[-1].share} if self.done else {}
        return {**left, "rounds": to_plain(self.done), "layers": list(self._names(training))}

    def _phase(self, training: Training) -> Phase:
        return Phase(f"round {len(self.done) + 1} of {self.rounds + 1}", training.recipe.epochs)

    def _names(self, training: Training) -> tuple[str, ...]:
        assert training.structure is not None
        return prunable_weights(training.model, training.structure, self.classifier)

    def _remember(self, training: Training) -> None:
        self.start = {name: each.detach().clone() for name, each in named_tensors(training.model).items()}

    @torch.no_grad()
    def _rewind(self, training: Training) -> None:
        """Set everything back."""
        for name, tensor in named_tensors(training.model).items():
            tensor.copy_(self.start[name])
        training.replace_model(training.model)

    def _choose(self, training: Training) -> dict[str, Tensor]:
        """Return the masks with the smallest of the weights left taken out."""
        parameters = dict(training.judged.named_parameters())
        weights = {name: parameters[name].detach() for name in self._names(training)}
        left = self._left(training)
        count = sum(int(mask.sum()) for mask in left.values())
        goes = rounded(count * Fraction(repr(self.percent)) / 100)
        training.notes.append(f"{goes:,} of {count:,} weights left set to zero")
        return {**training.masks, **without_smallest(weights, left, goes)}

    def _left(self, training: Training) -> dict[str, Tensor]:
        """Return which of the weights that may go are still there."""
        parameters = dict(training.model.named_parameters())
        return {
            name: training.masks[name]
            if name in training.masks
            else torch.ones_like(parameters[name], dtype=torch.bool)
            for name in self._names(training)
        }

    def _told(self, training: Training) -> Round:
        """Return what is to be said of the round that has just ended."""
        masks = self._left(training)
        total = sum(mask.numel() for mask in masks.values())
        left = {name: int(mask.sum()) for name, mask in masks.items()}
        weights = sum(left.values())
        collapsed = tuple(name for name, count in left.items() if count == 0)
        row = self.row
        if row is None:
            return Round(weights, weights / total, collapsed)
        return Round(
            weights,
            weights / total,
            collapsed,
            training.place.phase_epoch,
            row.loss,
            row.test_loss,
            row.test_top1,
        )


def without_smallest(
    weights: Mapping[str, Tensor], left: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    """Return masks in which the `count` smallest |w| of those left are gone too; of equals the first.

    >>> without_smallest({"a": torch.tensor([1.0, -2.0, 1.0])}, {"a": torch.tensor([True, True, True])}, 1)
    {'a': tensor([False,  True,  True])}
    """
    sizes = {name: weight.abs() for name, weight in weights.items()}
    stay = sum(int(mask.sum()) for mask in left.values()) - count
    return Selection().masks(sizes, stay, left)
