"""Single weights that are masked stay zero under any recipe and any schedule, and leave with their units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.budget import Budget
from prunecli.errors import CheckpointError
from prunecli.graph.cutting import slice_masks
from prunecli.plan import Scope
from prunecli.recipe import Recipe
from prunecli.training import Schedule, Training, Wishes, saving, train
from prunecli.training.loop import Course
from prunecli.training.optimising import make_optimising, state_tensors
from tests.training.small_runs import (
    Grouped,
    Mlp,
    Plan,
    Residual,
    Walker,
    assert_same,
    make,
    structure_of,
    tensors_of,
)

FAST = Recipe(epochs=2, lr=0.05, weight_decay=0.05)


def masks_of(model: nn.Module, share: float = 0.4) -> dict[str, Tensor]:
    """Return masks over all weights, drawn at random."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.rand(each.shape, generator=generator) < share
        for name, each in model.named_parameters()
        if each.ndim > 1
    }


@dataclass(frozen=True)
class Masked(Plan):
    """A run whose weights are masked from the start."""

    def start(self, model: nn.Module | None = None) -> tuple[Training, Schedule, Course]:
        training, schedule, course = super().start(model)
        training.set_masks(masks_of(training.model))
        return training, schedule, course


RECIPES = {
    "sgd": FAST,
    "sgd, everything": replace(
        FAST, decay_all=True, ema=0.8, clip=0.3, warmup=0.5, nesterov=True, accumulate=2
    ),
    "adam, everything": replace(
        FAST, optimizer="adam", lr=0.01, decay_all=True, ema=0.8, clip=0.3, accumulate=3
    ),
    "adamw, everything": replace(
        FAST, optimizer="adamw", lr=0.01, decay_all=True, ema=0.8, clip=0.3, accumulate=2
    ),
}


def twin(net: Any, recipe: Recipe) -> tuple[nn.Module, dict[str, Tensor]]:
    """Train with masked gradients, times the masks after every step; return the running average too."""
    stream, model = Plan(net).start()[2].stream, make(net)
    masks = masks_of(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name] *= mask
    steps = -(-stream.batch_count // recipe.accumulate)
    made = make_optimising(model, recipe, recipe.epochs, steps)
    average: dict[str, Tensor] = {}
    model.train()
    for epoch in range(recipe.epochs):
        batches = list(stream.epoch(epoch))
        for first in range(0, len(batches), recipe.accumulate):
            together = batches[first : first + recipe.accumulate]
            for (inputs,), targets in together:
                (cross_entropy(model(inputs.double()), targets) / len(together)).backward()
            for name, mask in masks.items():
                parameters[name].grad *= mask
            if recipe.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            made.optimizer.step()
            made.rate.step()
            made.optimizer.zero_grad()
            with torch.no_grad():
                for name, mask in masks.items():
                    parameters[name] *= mask
                share = (recipe.ema or 0.0) if average else 0.0  # the first is taken as it is
                average = {
                    name: share * average.get(name, 0.0) + (1 - share) * each
                    for name, each in parameters.items()
                }
    return model, average


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("net", (Mlp, Residual))
def test_it_is_training_with_masks_written_plainly(net: Any, recipe: str) -> None:
    training = Masked(net, RECIPES[recipe]).run()
    model, average = twin(net, RECIPES[recipe])
    assert_same(training.model, model, within=1e-12)
    if training.average is not None:
        for name, each in training.average.module.named_parameters():
            assert torch.allclose(each, average[name], atol=1e-12, rtol=0), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_zeros_stay_zero_in_weights_memory_and_average(recipe: str) -> None:
    training, schedule, course = Masked(Residual, RECIPES[recipe]).start()
    met = []

    class Looking(Walker):
        def tick(self, tick: Any) -> None:
            assert training.optimising is not None
            tables = [dict(training.model.named_parameters())]
            if training.average is not None:
                tables.append(dict(training.average.module.named_parameters()))
            for name, mask in training.masks.items():
                assert not any(table[name][~mask].any() for table in tables)
                assert all(table[name][mask].all() for table in tables)
            for name, key, tensor in state_tensors(training.optimising.optimizer, training.model):
                if name in training.masks and tensor.ndim:
                    assert not tensor[~training.masks[name]].any(), key
                    met.append(key)

    train(training, schedule, course, Looking())
    assert met


@pytest.mark.parametrize("autocast", (torch.float16, torch.bfloat16))
def test_zeros_stay_zero_in_half_precision(autocast: torch.dtype) -> None:
    training = Masked(Residual, FAST, autocast=autocast, single=True).run()
    assert_zero(training)


def assert_zero(training: Training) -> None:
    """Look at the model as it is now: masked weights are zero, and not all others are."""
    for model in (training.model, training.judged):
        for name, mask in training.masks.items():
            weight = model.get_parameter(name)
            assert weight.shape == mask.shape
            assert not weight[~mask].any()
            assert weight[mask].any()


HALF = Wishes(budget=Budget.parse("units=0.5"))
STEPWISE = {"every": 2, "units": "2"}
RUNS = {
    "plain": Masked(Residual, replace(FAST, ema=0.8, accumulate=2)),
    "float16": Masked(Residual, FAST, autocast=torch.float16, single=True),
    "channels last": Masked(Residual, replace(FAST, channels_last=True), single=True),
    **{
        f"iterative, physical {each}": Masked(
            Residual, replace(FAST, ema=0.8), "iterative", {**STEPWISE, "physical_every": each}, HALF, 0.3
        )
        for each in (0, 1, 3)
    },
    "iterative, grouped": Masked(
        Grouped, replace(FAST, optimizer="adamw", lr=0.01), "iterative", STEPWISE, HALF
    ),
    "contribution": Masked(
        Residual,
        Recipe(epochs=3, lr=0.05, ema=0.8),
        "contribution",
        {"warm": 1, "every": 1, "conv": True},
        Wishes(scope=Scope.LAYER),
    ),
    "network-slimming": Masked(
        Residual, replace(FAST, epochs=3), "network-slimming", {"penalty": 0.1, "sparse": 2}, HALF
    ),
    "imp": Masked(Residual, replace(FAST, ema=0.7), "imp", {"rounds": 1}),
}


@pytest.mark.parametrize("name", RUNS)
def test_masks_go_along_under_any_schedule_and_a_run_taken_up_again_ends_the_same(name: str) -> None:
    plan = RUNS[name]
    whole = plan.run()
    assert_zero(whole)
    for after in (0, 3, whole.place.step // 2, whole.place.step - 1):
        kept = plan.stop(after)
        assert kept is not None
        unmasked = Plan(**vars(plan))  # the file brings the masks
        again, _ = unmasked.resume(kept)
        assert_same(again.model, whole.model)
        assert_same(again.judged, whole.judged)
        assert again.masks.keys() == whole.masks.keys()
        assert all(torch.equal(mask, whole.masks[each]) for each, mask in again.masks.items())


def test_masks_leave_with_their_units() -> None:
    training = RUNS["iterative, physical 0"].run()
    model = make(Residual)
    expected = slice_masks(masks_of(model), structure_of(model), training.kept)
    assert any(mask.shape != model.get_parameter(name).shape for name, mask in expected.items())
    for found in (training.masks, training.result_masks):
        assert all(torch.equal(mask, expected[name]) for name, mask in found.items())
    assert_zero(training)


def test_silenced_units_are_not_in_the_masks_of_the_result() -> None:
    training, _, _ = Masked(Residual, FAST, "iterative", STEPWISE, HALF).start()
    kept = {name: stays.copy() for name, stays in training.kept.items()}
    kept["inner"][:3] = False
    training.drop(kept)
    assert training.masks["inner.weight"].shape[0] == 8
    assert training.result_masks["inner.weight"].shape[0] == 5
    assert not training.result.get_parameter("inner.weight")[~training.result_masks["inner.weight"]].any()
    training.start_over(make(Residual, seed=1), kept)
    assert training.masks["inner.weight"].shape[0] == 5
    assert_zero(training)


def test_masks_may_change_on_the_way() -> None:
    training, schedule, course = Plan(Mlp, replace(FAST, optimizer="adam", ema=0.5)).start()
    seen = 0

    class Turning(Walker):
        def tick(self, tick: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == 4:
                training.set_masks(masks_of(training.model))
            if seen >= 4:
                assert_zero(training)

    train(training, schedule, course, Turning())
    assert seen > 4
    training.set_masks({})
    assert training.masks == {}


def test_other_weights_get_the_zeros_too() -> None:
    training, _, _ = Masked(Mlp).start()
    training.replace_model(make(Mlp, seed=1))
    assert_zero(training)
    assert training.model.get_parameter("0.weight").any()


def test_masks_of_another_network_are_refused() -> None:
    training, _, _ = Plan(Mlp).start()
    for masks, message in (
        ({"0.weight": torch.ones(2, 6, dtype=torch.bool)}, r"`0.weight` is \[2, 6\].*is \[10, 6\]"),
        ({"0.other": torch.ones(2, dtype=torch.bool)}, "parameter is not there"),
    ):
        with pytest.raises(ValueError, match=message):
            training.set_masks(masks)


def test_a_state_of_another_network_is_refused() -> None:
    kept = Masked(Mlp).stop(3)
    assert kept is not None
    training, schedule, _ = Plan(Residual).start()
    with pytest.raises(CheckpointError, match="does not fit the network"):
        saving.from_bytes(kept, "a test").restore(training, schedule)


def test_without_masks_nothing_changes() -> None:
    plain, open_ = Plan(Residual, FAST), Masked(Residual, FAST)
    training, schedule, course = plain.start()
    training.set_masks({name: torch.ones_like(m) for name, m in masks_of(training.model).items()})
    train(training, schedule, course, Walker())
    assert_same(training.model, plain.run().model)
    assert not torch.equal(
        tensors_of(training.model)["head.weight"], tensors_of(open_.run().model)["head.weight"]
    )
