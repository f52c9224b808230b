"""Units that were silenced stay silent, and a network without them trains just as one in which they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from prunecli.budget import Budget
from prunecli.graph.copying import named_tensors
from prunecli.graph.cutting import slice_tensor
from prunecli.recipe import Recipe
from prunecli.training import Training, Wishes, train
from prunecli.training.optimising import state_tensors
from tests.training.small_runs import Grouped, Mlp, Plan, Residual, Walker, assert_same, tensors_of

SGD = Recipe(epochs=4, lr=0.05, weight_decay=1e-2)
OPTIMIZERS = {
    "sgd": SGD,
    "sgd, all decay": replace(SGD, decay_all=True, nesterov=False),
    "adamw": replace(SGD, optimizer="adamw", lr=0.01, decay_all=True),
    "adam, ema": replace(SGD, optimizer="adam", lr=0.01, ema=0.8),
}
HALF = Wishes(budget=Budget.parse("units=0.5"))


@pytest.mark.parametrize("recipe", OPTIMIZERS)
@pytest.mark.parametrize("net", (Mlp, Residual, Grouped))
def test_silenced_and_cut_networks_end_the_same(net: Callable[..., nn.Module], recipe: str) -> None:
    first, *others = (
        Plan(
            net, OPTIMIZERS[recipe], "iterative", {"every": 2, "units": "2", "physical_every": each}, HALF
        ).run()
        for each in (0, 1, 3)
    )
    assert first.unit_count <= sum(map(len, first.kept.values())) / 2
    for other in others:
        assert {n: s.tolist() for n, s in first.kept.items()} == {
            n: s.tolist() for n, s in other.kept.items()
        }
        assert_same(other.model, first.model, 1e-9)
        assert_same(other.judged, first.judged, 1e-9)
        for row, same in zip(first.history, other.history, strict=True):
            assert row.loss == pytest.approx(same.loss, abs=1e-9)
            assert (row.units, row.params, row.macs) == (same.units, same.params, same.macs)


def silenced(training: Training) -> dict[str, torch.Tensor]:
    """Return, per parameter, True where an entry belongs to a unit that was dropped; dense."""
    assert training.structure is not None
    found = {}
    for name, tensor in training.structure.parameters():
        mask = torch.zeros(tensor.shape, dtype=torch.bool)
        for dim, axis in enumerate(tensor.axes):
            if axis is not None:
                mask.index_fill_(dim, torch.from_numpy(np.flatnonzero(~axis.kept(training.kept))), True)
        found[name] = mask
    return found


@pytest.mark.parametrize("recipe", OPTIMIZERS)
@pytest.mark.parametrize("net", (Mlp, Residual, Grouped))
def test_pruned_units_stay_zero(net: Callable[..., nn.Module], recipe: str) -> None:
    """METHODS 11.15: through ten steps with momentum and weight decay."""
    plan = Plan(net, replace(OPTIMIZERS[recipe], epochs=3), count=40)
    plan = replace(plan, schedule="iterative", arguments={"every": 30, "units": "1"}, wishes=HALF)
    training, _, course = plan.start()
    schedule = Plan().start()[1]  # nothing leaves but here
    assert training.structure is not None

    class Dropping(Walker):
        def tick(self, tick: object) -> None:
            super().tick(tick)  # type: ignore[arg-type]
            if len(self.ticks) == 3:
                gone = {group.name: np.arange(group.width) % 4 >= 2 for group in training.structure.groups}
                training.drop(gone)
            if len(self.ticks) >= 3:
                masks = silenced(training)
                assert any(mask.any() for mask in masks.values())
                assert training.optimising is not None
                for name, parameter in training.model.named_parameters():
                    assert not parameter[masks[name]].any(), name
                for name, key, tensor in state_tensors(training.optimising.optimizer, training.model):
                    assert not tensor.ndim or not tensor[masks[name]].any(), (name, key)
                if training.average is not None:
                    for name, parameter in training.average.module.named_parameters():
                        assert not parameter[masks[name]].any(), name

    walker = Dropping()
    train(training, schedule, course, walker)
    assert len(walker.ticks) >= 13
    assert training.model.training


@pytest.mark.parametrize("recipe", OPTIMIZERS)
def test_what_the_optimizer_remembers_survives_a_cut(recipe: str) -> None:
    plan = Plan(Residual, OPTIMIZERS[recipe], "iterative", {"every": 30, "units": "1"}, HALF)
    training, _, course = plan.start()
    schedule = Plan().start()[1]  # nothing leaves but here
    assert training.structure is not None
    structure = training.structure
    kept = {group.name: np.arange(group.width) % 3 != 1 for group in structure.groups}

    class Cutting(Walker):
        def tick(self, tick: object) -> None:
            super().tick(tick)  # type: ignore[arg-type]
            if len(self.ticks) == 4:
                assert training.optimising is not None
                optimizer = training.optimising.optimizer
                training.drop(kept)
                before = {(n, k): t.clone() for n, k, t in state_tensors(optimizer, training.model)}
                weights = tensors_of(training.model)
                training.shrink()
                sliced = partial(slice_tensor, structure=structure, kept=kept)
                after = {(n, k): t for n, k, t in state_tensors(optimizer, training.model)}
                assert after.keys() == before.keys()
                assert any(tensor.any() for tensor in after.values())
                for (name, key), tensor in after.items():
                    expected = sliced(before[name, key], name) if tensor.ndim else before[name, key]
                    assert torch.equal(tensor, expected), (name, key)
                for name, tensor in named_tensors(training.model).items():
                    assert torch.equal(tensor, sliced(weights[name], name)), name
                held = [p for group in optimizer.param_groups for p in group["params"]]
                assert {id(p) for p in held} == {id(p) for p in training.model.parameters()}
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training, schedule, course, Cutting())
