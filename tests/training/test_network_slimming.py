"""Pressing scales towards zero, against a loss with the penalty written into it; and the cut that follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunecli.budget import Budget
from prunecli.errors import BudgetError, NotPrunableError, UsageError
from prunecli.plan import Constraints, Rank
from prunecli.recipe import Recipe
from prunecli.training import Training, Wishes, train
from prunecli.training.network_slimming import NetworkSlimming
from prunecli.training.optimising import make_optimising
from tests.training.small_runs import Mlp, Plan, Residual, Walker, make, tensors_of

HALF = Wishes(budget=Budget.parse("units=0.5"), rank=Rank.SCORE)
RECIPE = Recipe(epochs=4, lr=0.05)
SLIM = Plan(Residual, RECIPE, "network-slimming", {"penalty": 0.01, "sparse": 3}, HALF)
NORMS = ("stem_norm", "inner_norm", "deep_norm", "outer_norm")


def run(plan: Plan, epochs: int | None = None) -> tuple[Training, NetworkSlimming]:
    """Return a run at its end, or after so many epochs."""
    training, schedule, course = plan.start()
    schedule.check(training)

    class Stopping(Walker):
        def epoch_over(self, training: Training, row: Any) -> None:
            if training.place.epoch == epochs:
                raise KeyboardInterrupt

    if epochs is None:
        train(training, schedule, course, Walker())
    else:
        with pytest.raises(KeyboardInterrupt):
            train(training, schedule, course, Stopping())
    assert isinstance(schedule, NetworkSlimming)
    return training, schedule


def penalised(epochs: int, penalty: float) -> nn.Module:
    """Train with loss + penalty * sum of |gamma|, written plainly."""
    stream, model = SLIM.start()[2].stream, make(Residual)
    made = make_optimising(model, RECIPE, 3, stream.batch_count)
    model.train()
    for epoch in range(epochs):
        for (inputs,), targets in stream.epoch(epoch):
            loss = cross_entropy(model(inputs.double()), targets)
            loss = loss + penalty * sum(getattr(model, name).weight.abs().sum() for name in NORMS)
            loss.backward()
            made.optimizer.step()
            made.optimizer.zero_grad()
            made.rate.step()
    return model


@pytest.mark.parametrize("penalty", (1e-4, 0.01, 0.3))
def test_it_trains_as_with_the_penalty_in_the_loss(penalty: float) -> None:
    found, _ = run(replace(SLIM, arguments={"penalty": penalty, "sparse": 3}), epochs=2)
    expected = tensors_of(penalised(2, penalty))
    for name, tensor in tensors_of(found.model).items():
        assert torch.allclose(tensor.double(), expected[name].double(), atol=1e-12, rtol=0), name


def test_scales_shrink_and_the_loss_still_falls() -> None:
    plan = replace(SLIM, recipe=replace(RECIPE, epochs=12), arguments={"penalty": 0.05, "sparse": 11})
    pressed, _ = run(plan, epochs=10)
    free, _ = run(replace(plan, arguments={"penalty": 1e-9, "sparse": 11}), epochs=10)
    ours, theirs = (
        torch.cat([getattr(each.model, name).weight.detach().abs() for name in NORMS])
        for each in (pressed, free)
    )
    assert ours.sum() < 0.8 * theirs.sum()
    assert ours.min() < 0.5 * theirs.min()
    assert pressed.history[-1].loss < pressed.history[0].loss


def test_the_smallest_scales_of_the_network_go() -> None:
    """The stage has two norms, whose scales are added; `inner` and `deep` are one group of another two."""
    before, _ = run(SLIM, epochs=2)  # the third epoch ends with the cut
    training, schedule = run(SLIM)
    model = penalised(3, 0.01)
    stage = (model.stem_norm.weight.abs() + model.outer_norm.weight.abs()).tolist()
    inner = (model.inner_norm.weight.abs() + model.deep_norm.weight.abs()).tolist()
    assert schedule.scales["stem"] == pytest.approx(stage, abs=1e-12)
    assert schedule.scales["inner"] == pytest.approx(inner, abs=1e-12)
    ranked = sorted(
        (size, name, unit)
        for name, sizes in (("stem", stage), ("inner", inner))
        for unit, size in enumerate(sizes)
    )
    gone = {(name, int(unit)) for name, stays in training.kept.items() for unit in np.flatnonzero(~stays)}
    assert gone == {(name, unit) for _, name, unit in ranked[:7]}
    assert before.unit_count == 14
    assert training.unit_count == 7
    assert [row.phase for row in training.history] == ["sparse training"] * 3 + ["fine-tuning"]
    assert [row.units for row in training.history] == [14, 14, 14, 7]
    assert training.history[2].notes == ("cut: 14 -> 7 units",)


def test_nothing_presses_on_behind_the_cut() -> None:
    training, _ = run(replace(SLIM, arguments={"penalty": 5.0, "sparse": 1}))
    pressed, _ = run(replace(SLIM, arguments={"penalty": 5.0, "sparse": 4}))
    assert training.model.inner_norm.weight.abs().sum() > 0
    assert [row.phase for row in pressed.history] == ["sparse training"] * 4
    assert pressed.unit_count == 7


def test_layers_without_a_scale_are_refused_unless_ignored() -> None:
    training, schedule, _ = replace(SLIM, net=Mlp).start()
    with pytest.raises(NotPrunableError, match=r"`0` has no normalisation .* `--ignore 0`"):
        schedule.check(training)


class Mixed(nn.Sequential):
    """One layer with a norm, one without."""

    shape = (6,)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)
        )


def test_what_is_ignored_stays_and_is_not_pressed() -> None:
    wishes = replace(HALF, constraints=Constraints(ignore=("3",)))
    training, schedule = run(replace(SLIM, net=Mixed, wishes=wishes))
    assert {name: int(stays.sum()) for name, stays in training.kept.items()} == {"0": 1, "3": 8}
    assert list(schedule.scales) == ["0"]
    wishes = replace(HALF, constraints=Constraints(ignore=("stem",)))
    plan = replace(SLIM, wishes=wishes)
    ours, free = (
        run(plan, epochs=1)[0],
        run(replace(plan, arguments={"penalty": 1e-12, "sparse": 3}), epochs=1)[0],
    )
    assert (ours.model.inner_norm.weight - free.model.inner_norm.weight).abs().max() > 1e-4
    scaled, same = (each.model.stem_norm.weight for each in (ours, free))
    assert (scaled - same).abs().max() < 1e-3  # only what the loss makes of the other scales


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    (
        ({"wishes": Wishes()}, UsageError, "how much may stay"),
        ({"wishes": replace(HALF, method="taylor-fo")}, UsageError, "leave out `--method taylor-fo`"),
        ({"arguments": {"penalty": 0.0}}, UsageError, "penalty=0.0"),
        ({"arguments": {"sparse": 5}}, UsageError, "sparse=5"),
        ({"wishes": Wishes(budget=Budget.parse("units=1"))}, BudgetError, "cannot be met"),
    ),
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    training, schedule, _ = replace(SLIM, **changes).start()
    with pytest.raises(error, match=message):
        schedule.check(training)
