"""Pruning while training, against the procedure written plainly with gates (METHODS 7.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from prunecli.budget import Budget, make_plan
from prunecli.data import Evaluation
from prunecli.errors import UsageError
from prunecli.importance import About, Scores
from prunecli.recipe import Recipe
from prunecli.training import Schedule, Training, Wishes, train
from prunecli.training.iterative import Iterative
from tests.training.small_runs import Mlp, Plan, Residual, Walker, make

HALF = Wishes(budget=Budget.parse("units=0.5"))
RECIPE = Recipe(epochs=6, lr=0.05, weight_decay=1e-2)
LENGTHS = {"0": 10, "3": 8}


class Gated(nn.Module):
    """The MLP with a gate behind each unit; gates are not trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([model[0], model[3], model[5]])  # type: ignore[index]
        self.gates = {name: torch.ones(length).double() for name, length in LENGTHS.items()}

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.layers[0](x) * self.gates["0"])
        x = relu(self.layers[1](x) * self.gates["3"])
        return self.layers[2](x)  # type: ignore[no-any-return]


class Twin:
    """The loop of METHODS 7.1, over gates, step by step."""

    def __init__(self, plan: Plan, every: int, q: int, target: int, momentum: float) -> None:
        self.model = Gated(make(Mlp))
        _, _, course = plan.start()
        steps = plan.recipe.epochs * course.stream.batch_count
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        decay = plan.recipe.weight_decay
        self.optimizer = torch.optim.SGD(
            [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=plan.recipe.lr,
            momentum=0.9,
            nesterov=True,
        )
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.order: list[tuple[str, int]] = []
        self.gate_gradients: list[dict[str, Tensor]] = []
        total, number, averaged, seen, gone = None, 0, None, 0.0, 0
        self.losses: list[float] = []
        for epoch in range(plan.recipe.epochs):
            for (inputs,), targets in course.stream.epoch(epoch):
                for gate in self.model.gates.values():
                    gate.requires_grad_().grad = None
                loss = cross_entropy(self.model(inputs.double()), targets)
                loss.backward()
                h = {name: gate.grad.clone() for name, gate in self.model.gates.items()}  # type: ignore[union-attr]
                self.gate_gradients.append(h)
                for gate in self.model.gates.values():
                    gate.requires_grad_(False)
                squares = {name: each.square() for name, each in h.items()}
                total = squares if total is None else {n: total[n] + squares[n] for n in squares}
                number, seen = number + 1, seen + loss.item()
                self.optimizer.step()
                self.optimizer.zero_grad()
                rate.step()
                self._silence()
                if number == every and gone < target:
                    mean = {name: each / number for name, each in total.items()}
                    averaged = (
                        mean
                        if averaged is None
                        else {n: momentum * averaged[n] + (1 - momentum) * mean[n] for n in mean}
                    )
                    alive = [
                        (float(averaged[name][unit]), place, unit, name)
                        for place, name in enumerate(LENGTHS)
                        for unit in range(LENGTHS[name])
                        if self.model.gates[name][unit]
                    ]
                    for _, _, unit, name in sorted(alive)[: min(q, target - gone)]:
                        self.model.gates[name][unit] = 0
                        self.order.append((name, unit))
                        gone += 1
                    self._silence()
                    self.losses.append(seen / number)
                    total, number, seen = None, 0, 0.0
                    if gone == target:
                        self.optimizer.state.clear()

    @torch.no_grad()
    def _silence(self) -> None:
        for place, name in enumerate(LENGTHS):
            dead = self.model.gates[name] == 0
            own, next_ = self.model.layers[place], self.model.layers[place + 1]
            for parameter, index in (
                (own.weight, dead),
                (own.bias, dead),
                (next_.weight, (slice(None), dead)),
            ):
                parameter[index] = 0
                buffer = self.optimizer.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    buffer[index] = 0


def removals(plan: Plan) -> tuple[list[list[tuple[str, int]]], Training, Iterative]:
    """Return which units go at each pruning of a run."""
    training, schedule, course = plan.start()
    gone: list[list[tuple[str, int]]] = []
    drop = training.drop

    def note(kept: Any) -> None:
        before = training.kept
        drop(kept)
        gone.append([(n, int(u)) for n in before for u in (before[n] & ~training.kept[n]).nonzero()[0]])

    training.drop = note  # type: ignore[method-assign]
    schedule.check(training)
    train(training, schedule, course, Walker())
    assert isinstance(schedule, Iterative)
    return gone, training, schedule


@pytest.mark.parametrize("physical", (0, 1, 3))
@pytest.mark.parametrize("momentum", (0.0, 0.9))
@pytest.mark.parametrize("q", (1, 2, 4))
def test_the_same_units_go_as_in_the_loop_with_gates(q: int, momentum: float, physical: int) -> None:
    arguments: dict[str, object] = {
        "every": 2,
        "units": str(q),
        "momentum": momentum,
        "physical_every": physical,
    }
    plan = Plan(Mlp, RECIPE, "iterative", arguments, HALF)
    gone, training, schedule = removals(plan)
    twin = Twin(plan, every=2, q=q, target=9, momentum=momentum)
    assert [len(step) for step in gone] == [min(q, 9 - q * n) for n in range(-(-9 // q))]  # exactly q
    expected = [sorted(twin.order[at : at + q]) for at in range(0, 9, q)]
    assert [sorted(step) for step in gone] == expected
    assert [units for units, _ in schedule.curve] == [18 - q * n for n in range(len(gone))]
    for (_, loss), same in zip(schedule.curve, twin.losses, strict=True):
        assert loss == pytest.approx(same, abs=1e-12)
    kept = [torch.from_numpy(training.kept[name]) for name in LENGTHS]
    layers = twin.model.layers
    for found, expected_weight in (
        (training.model[0].weight, layers[0].weight[kept[0]]),  # type: ignore[index]
        (training.model[3].weight, layers[1].weight[kept[1]][:, kept[0]]),  # type: ignore[index]
        (training.model[5].weight, layers[2].weight[:, kept[1]]),  # type: ignore[index]
    ):
        assert torch.allclose(found, expected_weight, atol=1e-12, rtol=0)


def test_a_score_is_the_gate_gradient_of_the_minibatch_before_its_step() -> None:
    plan = Plan(Mlp, RECIPE, "iterative", {"every": 1, "steps": 1, "momentum": 0.0}, HALF)
    _, _, schedule = removals(plan)
    twin = Twin(plan, every=1, q=9, target=9, momentum=0.0)
    for name, h in twin.gate_gradients[0].items():
        assert torch.allclose(schedule.averaged[name], h.square(), atol=1e-14, rtol=0)


def test_too_large_a_loss_stops_pruning_for_good() -> None:
    arguments: dict[str, object] = {"every": 2, "units": "2"}
    gone, _, schedule = removals(Plan(Mlp, RECIPE, "iterative", arguments, HALF))
    limit = max(loss for _, loss in schedule.curve[1:])
    first = next(n for n, (_, loss) in enumerate(schedule.curve) if loss >= limit)
    assert 0 < first < len(gone)
    plan = Plan(Mlp, RECIPE, "iterative", {**arguments, "max_loss": limit - 1e-9}, HALF)
    stopped, training, schedule = removals(plan)
    assert stopped == gone[:first]
    assert schedule.gave_up
    assert not schedule.facts(training)["budget_met"]
    assert training.place.epoch == RECIPE.epochs  # it trains on
    assert any("pruning stopped" in note for row in training.history for note in row.notes)


def test_a_fixed_criterion_scores_once() -> None:
    plan = Plan(Mlp, RECIPE, "iterative", {"every": 2, "units": "3", "fixed": True}, HALF)
    gone, _, schedule = removals(plan)
    twin = Twin(plan, every=2, q=9, target=9, momentum=0.0)  # the first scores decide everything
    assert sorted(unit for step in gone for unit in step) == sorted(twin.order)


def test_one_step_is_one_plan() -> None:
    plan = Plan(Mlp, RECIPE, "iterative", {"every": 7, "steps": 1}, HALF)
    gone, _, _ = removals(plan)
    twin = Twin(plan, every=7, q=9, target=9, momentum=0.0)
    assert len(gone) == 1
    assert sorted(gone[0]) == sorted(twin.order)


@pytest.mark.parametrize("target", ("macs=0.4", "params=0.5", "units=0.5"))
@pytest.mark.parametrize("arguments", ({"steps": 5}, {"units": "1"}))
def test_the_budget_is_met_as_a_plan_meets_it(target: str, arguments: dict[str, object]) -> None:
    wishes = Wishes(budget=Budget.parse(target))
    recipe = replace(RECIPE, epochs=10)
    plan = Plan(Residual, recipe, "iterative", {"every": 2, **arguments}, wishes)
    _, training, schedule = removals(plan)
    assert training.structure is not None
    scores = Scores(About("taylor-fo"), schedule.averaged)
    decided = make_plan(training.structure, scores, budget=target).kept()
    assert {n: s.tolist() for n, s in training.kept.items()} == {n: s.tolist() for n, s in decided.items()}
    row = training.history[-1]
    dense = {"macs": training.structure.macs({}), "params": training.structure.parameter_count({})}
    what, _, share = target.partition("=")
    if what in dense:
        assert getattr(row, what) <= float(share) * dense[what]
    assert schedule.facts(training)["budget_met"]


def test_momentum_is_forgotten_at_the_budget() -> None:
    training, schedule, course = Plan(Mlp, RECIPE, "iterative", {"every": 3, "steps": 1}, HALF).start()
    schedule.check(training)

    class Looking(Walker):
        def tick(self, tick: Any) -> None:
            super().tick(tick)
            assert training.optimising is not None
            assert bool(training.optimising.optimizer.state) == (len(self.ticks) != 3)

    train(training, schedule, course, Looking())


def test_without_tuning_the_weights_stay() -> None:
    plan = Plan(Residual, RECIPE, "iterative", {"every": 2, "units": "2", "tunes": False}, HALF)
    before = plan.start()[0].model
    _, training, _ = removals(plan)
    kept = torch.from_numpy(training.kept["inner"])
    assert torch.equal(training.model.inner_norm.running_mean, before.inner_norm.running_mean[kept])
    assert torch.equal(
        training.model.head.weight,
        before.head.weight[:, torch.from_numpy(training.kept["stem"])],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"wishes": Wishes()}, "how much may stay"),
        ({"recipe": replace(RECIPE, accumulate=2)}, "--accumulate"),
        ({"recipe": replace(RECIPE, epochs=1)}, "needs 9 prunings, 18 minibatches; 1 epochs have 5"),
        ({"arguments": {"every": 0}}, "at least 1"),
        ({"arguments": {"momentum": 1.0}}, "--score-momentum"),
    ),
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    plan = replace(Plan(Mlp, RECIPE, "iterative", {"every": 2, "units": "1"}, HALF), **changes)
    training, schedule, _ = plan.start()
    with pytest.raises(UsageError, match=message):
        schedule.check(training)
    assert isinstance(schedule, Schedule)


def test_patience_waits_until_the_budget_is_met() -> None:
    worse = iter(range(1000))
    plan = Plan(Mlp, replace(RECIPE, patience=1), "iterative", {"every": 5, "units": "2"}, HALF)
    training = plan.run(lambda model: Evaluation(float(next(worse)), None, None, 1))
    assert training.history[-1].units == training.unit_count
    assert any("budget met" in note for row in training.history for note in row.notes)
