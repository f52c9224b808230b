"""A run that is stopped at any minibatch and taken up again ends as one that was never stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from prunecli.budget import Budget
from prunecli.errors import CheckpointError
from prunecli.plan import Scope
from prunecli.recipe import Recipe
from prunecli.training import Training, Wishes, saving
from tests.training.small_runs import Grouped, Mlp, Plan, Residual, assert_same

HALF = Wishes(budget=Budget.parse("units=0.5"))
LAYER = Wishes(scope=Scope.LAYER)
FAST = Recipe(epochs=2, lr=0.05)
STEPWISE = {"every": 2, "units": "2"}

RUNS = {
    "plain": Plan(recipe=FAST),
    "dropout": Plan(recipe=FAST, dropout=0.5),
    "adamw": Plan(recipe=replace(FAST, optimizer="adamw", lr=0.01)),
    "adam": Plan(recipe=replace(FAST, optimizer="adam", lr=0.01)),
    "no momentum": Plan(recipe=replace(FAST, momentum=0.0)),
    "warm-up": Plan(recipe=replace(FAST, warmup=0.7)),
    "onecycle": Plan(recipe=replace(FAST, lr_schedule="onecycle")),
    "steps": Plan(recipe=replace(FAST, lr_schedule="step", lr_step=1)),
    "ema": Plan(Residual, recipe=replace(FAST, ema=0.8)),
    "accumulate": Plan(recipe=replace(FAST, accumulate=2)),
    "accumulate 3, clip": Plan(recipe=replace(FAST, accumulate=3, clip=0.5)),
    "augment": Plan(Residual, recipe=replace(FAST, augment="crop=1,flip"), dropout=0.3),
    "mixup": Plan(Residual, recipe=replace(FAST, augment="mixup=0.4,cutmix=1")),
    "bfloat16": Plan(Residual, recipe=FAST, autocast=torch.bfloat16, single=True),
    "float16": Plan(Residual, recipe=FAST, autocast=torch.float16, single=True),
    "channels last": Plan(Residual, recipe=replace(FAST, channels_last=True), single=True),
    "everything": Plan(
        Residual,
        recipe=Recipe(
            epochs=2,
            optimizer="adamw",
            lr=0.01,
            warmup=0.5,
            ema=0.7,
            accumulate=2,
            clip=1.0,
            label_smoothing=0.1,
            augment="crop=1,flip,mixup=0.3",
            channels_last=True,
        ),
        dropout=0.3,
        single=True,
    ),
    **{
        f"iterative, physical {each}": Plan(
            Residual, replace(FAST, ema=0.8), "iterative", {**STEPWISE, "physical_every": each}, HALF, 0.3
        )
        for each in (0, 1, 3)
    },
    "iterative, adamw, warm-up": Plan(
        Residual,
        replace(FAST, optimizer="adamw", lr=0.01, warmup=0.6),
        "iterative",
        {**STEPWISE, "physical_every": 2},
        HALF,
    ),
    "iterative, grouped": Plan(Grouped, FAST, "iterative", STEPWISE, HALF, 0.3),
    "iterative, augment": Plan(Residual, replace(FAST, augment="crop=1,flip"), "iterative", STEPWISE, HALF),
    "iterative, channels last": Plan(
        Residual, replace(FAST, channels_last=True), "iterative", STEPWISE, HALF, single=True
    ),
    "iterative, fixed": Plan(Mlp, FAST, "iterative", {**STEPWISE, "fixed": True}, HALF),
    "iterative, no tuning": Plan(Mlp, FAST, "iterative", {**STEPWISE, "tunes": False}, HALF),
    "iterative, random": Plan(Mlp, FAST, "iterative", STEPWISE, replace(HALF, method="random")),
    **{
        f"contribution, {name}": Plan(
            net,
            Recipe(epochs=3, lr=0.05, lr_schedule="constant", ema=0.8),
            "contribution",
            {"warm": 1, "every": 1, "conv": net is not Mlp},
            wishes,
            0.3,
        )
        for name, net, wishes in (
            ("all", Mlp, LAYER),
            ("last batch", Mlp, replace(LAYER, method_args={"window": "last-batch"})),
            ("random", Mlp, replace(LAYER, method="random")),
            ("convolutions", Residual, LAYER),
            ("by gradients", Residual, replace(LAYER, method="taylor-fo")),
        )
    },
    "network-slimming": Plan(
        Residual, replace(FAST, epochs=3, ema=0.8), "network-slimming", {"penalty": 0.1, "sparse": 2}, HALF
    ),
    "imp": Plan(Mlp, FAST, "imp", {"rounds": 1}, dropout=0.3),
    "imp, rewinding": Plan(
        Residual, replace(FAST, optimizer="adamw", lr=0.01, ema=0.7), "imp", {"rounds": 1, "rewind": 1}
    ),
    "iterative, macs": Plan(
        Residual, FAST, "iterative", {"every": 2, "steps": 4}, Wishes(budget=Budget.parse("macs=0.5"))
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_in_an_epoch_or_between_two_it_ends_the_same(name: str) -> None:
    plan = RUNS[name]
    whole = plan.run()
    assert_ends_the_same(plan, whole, (3, whole.place.step // 2, whole.place.step - 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_stopped_anywhere_it_ends_the_same(name: str) -> None:
    plan = RUNS[name]
    whole = plan.run()
    assert_ends_the_same(plan, whole, range(whole.place.step))
    assert plan.stop(whole.place.step) is None


def assert_ends_the_same(plan: Plan, whole: Training, places: Iterable[int]) -> None:
    """Stop a run after so many minibatches, take it up again, and compare it with the whole one."""
    start = plan.stop(0)
    assert start is not None
    training, schedule = plan.resume(start)
    facts = schedule.facts(training)
    for after in places:
        kept = plan.stop(after)
        assert kept is not None
        again, schedule = plan.resume(kept)
        assert_same(again.model, whole.model)
        assert_same(again.judged, whole.judged)
        assert again.history == whole.history, after
        assert again.place == whole.place
        assert schedule.facts(again) == facts
        assert again.kept.keys() == whole.kept.keys()
        assert all(bool((stays == whole.kept[name]).all()) for name, stays in again.kept.items())


def test_settings_and_figures_survive() -> None:
    kept = RUNS["iterative, physical 3"].stop(5)
    assert kept is not None
    assert saving.from_bytes(kept, "a test").settings == {}


@pytest.mark.parametrize(
    "part", ("header", "cut short", "empty", "text", "other file", "no version", "later")
)
def test_a_damaged_state_is_refused_in_one_line(part: str) -> None:
    content = RUNS["plain"].stop(3)
    assert content is not None
    size = int.from_bytes(content[:8], "little")
    other = json.dumps({"__metadata__": {"prunecli.run": json.dumps({"version": 99})}}).encode()
    damaged = {
        "header": content[:20] + b"\0" + content[21:],
        "cut short": content[:-7],
        "empty": b"",
        "text": b"not a state at all",
        "other file": content[:8]
        + content[8 : 8 + size].replace(b"prunecli.run", b"prunecli.cat")
        + content[8 + size :],
        "no version": content[:8]
        + content[8 : 8 + size].replace(b"version", b"versoin")
        + content[8 + size :],
        "later": len(other).to_bytes(8, "little") + other,
    }[part]
    with pytest.raises(CheckpointError, match="Start over with `--force`") as error:
        saving.from_bytes(damaged, "state.safetensors")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 4


def test_a_state_of_another_network_is_refused() -> None:
    content = RUNS["plain"].stop(3)
    assert content is not None
    training, schedule, _ = RUNS["iterative, fixed"].start()
    with pytest.raises(CheckpointError, match="does not fit the network"):
        saving.from_bytes(content, "state.safetensors").restore(training, schedule)
    training, schedule, _ = RUNS["channels last"].start()
    with pytest.raises(CheckpointError, match="does not fit the network"):
        saving.from_bytes(content, "state.safetensors").restore(training, schedule)
