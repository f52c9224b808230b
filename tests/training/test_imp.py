"""Magnitude pruning with rewinding, against it written plainly; zeros that stay zero; the classifier."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.budget import Budget
from prunecli.data import Evaluation
from prunecli.errors import NotPrunableError, UsageError
from prunecli.recipe import Recipe
from prunecli.training import Training, Wishes, train
from prunecli.training.imp import IterativeMagnitude, without_smallest
from prunecli.training.optimising import make_optimising, state_tensors
from prunecli.weights import prunable_weights
from tests.training.small_runs import Mlp, Plan, Residual, Walker, make, structure_of, tensors_of

RECIPE = Recipe(epochs=2, lr=0.05, weight_decay=1e-2)
IMP = Plan(Mlp, RECIPE, "imp", {"rounds": 3})


def twin(rounds: int, percent: int, rewind: int, names: tuple[str, ...]) -> tuple[nn.Module, list[int]]:
    """Train, sort all weights, set the lowest to zero, go back: with plain lists."""
    stream, model = IMP.start()[2].stream, make(Mlp)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = {name: torch.ones_like(start[name]) for name in names}
    counts = [sum(int(mask.sum()) for mask in masks.values())]
    epoch = 0
    for number in range(rounds + 1):
        made = make_optimising(model, RECIPE, RECIPE.epochs, stream.batch_count)
        parameters = dict(model.named_parameters())
        for done in range(RECIPE.epochs):
            for (inputs,), targets in stream.epoch(epoch):
                cross_entropy(model(inputs.double()), targets).backward()
                for name, mask in masks.items():
                    parameters[name].grad *= mask
                made.optimizer.step()
                made.optimizer.zero_grad()
                made.rate.step()
                with torch.no_grad():
                    for name, mask in masks.items():
                        parameters[name] *= mask
            epoch += 1
            if number == 0 and done + 1 == rewind:
                start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if number == rounds:
            break
        alive = [
            (abs(value), layer, place)
            for layer, name in enumerate(names)
            for place, value in enumerate(parameters[name].flatten().tolist())
            if masks[name].flatten()[place]
        ]
        goes = int(len(alive) * percent / 100 + 0.5)
        for _, layer, place in sorted(alive)[:goes]:
            masks[names[layer]].view(-1)[place] = 0
        counts.append(counts[-1] - goes)
        model.load_state_dict(start)
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name] *= mask
    return model, counts


def run(plan: Plan, walker: Walker | None = None) -> tuple[Training, IterativeMagnitude]:
    """Return a run at its end."""
    training, schedule, course = plan.start()
    schedule.check(training)
    train(training, schedule, course, walker or Walker())
    assert isinstance(schedule, IterativeMagnitude)
    return training, schedule


@pytest.mark.parametrize("rewind", (0, 1))
@pytest.mark.parametrize("classifier", (False, True))
@pytest.mark.parametrize("percent", (20, 33))
def test_it_is_the_procedure_written_plainly(percent: int, classifier: bool, rewind: int) -> None:
    arguments: dict[str, object] = {
        "rounds": 3, "percent": percent, "classifier": classifier, "rewind": rewind,
    }  # fmt: skip
    training, schedule = run(replace(IMP, arguments=arguments))
    names = ("0.weight", "3.weight", *(["5.weight"] if classifier else []))
    model, counts = twin(3, percent, rewind, names)
    assert [each.weights for each in schedule.done] == counts
    for name, tensor in tensors_of(model).items():
        found = tensors_of(training.model)[name]
        assert torch.equal(found == 0, tensor == 0), name
        assert torch.allclose(found, tensor, atol=1e-13, rtol=0), name


def test_the_lowest_go_exactly_so_many_and_the_first_of_equals() -> None:
    weights = {"a": torch.tensor([[3.0, -1.0], [1.0, 0.0]]), "b": torch.tensor([1.0, -1.0, 5.0])}
    left = {"a": torch.tensor([[True, True], [True, False]]), "b": torch.ones(3, dtype=torch.bool)}
    gone = [without_smallest(weights, left, count) for count in range(7)]
    assert gone[3]["a"].tolist() == [[True, False], [False, False]]
    assert gone[3]["b"].tolist() == [False, True, True]
    for count, masks in enumerate(gone):
        assert sum(int(mask.sum()) for mask in masks.values()) == 6 - count


RECIPES = {
    "sgd": RECIPE,
    "sgd, all decay, ema": replace(RECIPE, decay_all=True, ema=0.8),
    "adamw": replace(RECIPE, optimizer="adamw", lr=0.01),
    "adam, clipped": replace(RECIPE, optimizer="adam", lr=0.01, clip=0.5, accumulate=2),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("net", (Mlp, Residual))
def test_zeros_stay_zero_in_weights_and_in_memory(net: Any, recipe: str) -> None:
    training, schedule, course = replace(IMP, net=net, recipe=RECIPES[recipe]).start()
    assert isinstance(schedule, IterativeMagnitude)
    met = 0

    class Looking(Walker):
        def tick(self, tick: Any) -> None:
            nonlocal met
            assert training.optimising is not None
            for name, mask in training.masks.items():
                weight = dict(training.model.named_parameters())[name]
                assert not weight[~mask].any()
                assert weight[mask].all()
                assert (
                    training.average is None or not training.average.module.get_parameter(name)[~mask].any()
                )
                met += int((~mask).sum())
            for name, key, tensor in state_tensors(training.optimising.optimizer, training.model):
                if name in training.masks and tensor.ndim:
                    assert not tensor[~training.masks[name]].any(), key

    train(training, schedule, course, Looking())
    assert met


def test_it_goes_back_to_the_start_with_norms_and_a_new_optimizer() -> None:
    training, schedule, course = replace(IMP, net=Residual).start()
    assert isinstance(schedule, IterativeMagnitude)
    start = tensors_of(training.model)

    class Looking(Walker):
        def epoch_over(self, training: Training, row: Any) -> None:
            if row.epoch in (2, 4, 6):  # the next round stands ready
                for name, tensor in tensors_of(training.model).items():
                    mask = training.masks.get(name)
                    assert torch.equal(tensor, start[name] if mask is None else start[name] * mask), name
                assert training.optimising is not None
                assert not training.optimising.optimizer.state
                assert training.optimising.rate_now == 0.05

    train(training, schedule, course, Looking())
    assert [row.phase for row in training.history] == [f"round {n} of 4" for n in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_the_rounds_are_told() -> None:
    values = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    training, schedule = run(IMP, Walker(judge=lambda model: Evaluation(1.0, next(values), None, 5)))
    told = schedule.facts(training)
    assert told["layers"] == ["0.weight", "3.weight"]
    assert (told["weights_left"], told["share_left"]) == (72, 72 / 140)
    rounds: Any = told["rounds"]
    assert [each["weights"] for each in rounds] == [140, 112, 90, 72]
    assert [each["share"] for each in rounds] == [each / 140 for each in (140, 112, 90, 72)]
    assert [each["test_top1"] for each in rounds] == [0.2, 0.4, 0.6, 0.8]
    assert [each["epochs"] for each in rounds] == [2, 2, 2, 2]
    assert training.history[1].notes == ("28 of 140 weights left set to zero",)
    assert training.unit_count == 18  # no unit leaves


def test_a_layer_without_weights_is_named() -> None:
    plan = replace(IMP, arguments={"rounds": 2, "percent": 90.0})
    training, schedule, course = plan.start()
    with torch.no_grad():
        training.model[3].weight.mul_(1e-6)  # type: ignore[index]
    train(training, schedule, course, Walker())
    assert isinstance(schedule, IterativeMagnitude)
    assert schedule.done[-1].collapsed == ("3.weight",)


class Softened(nn.Sequential):
    """A classifier that is not called so, behind it a softmax."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(1))


class Single(nn.Sequential):
    """One output, whose dimension goes."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))


class TwoHeads(nn.Module):
    """Two outputs, and a convolution as wide as one of them."""

    shape = (2, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.inner = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 5, 1)
        self.one, self.two = nn.Linear(5, 3), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inner(self.fc(x).relu()).relu()
        return self.one(x.mean((2, 3))), self.two(x).mean((2, 3))


@pytest.mark.parametrize(
    ("net", "inner", "last"),
    (
        (Softened, ("0.weight",), ("2.weight",)),
        (Single, ("0.weight",), ("2.weight",)),
        (TwoHeads, ("fc.weight", "inner.weight"), ("one.weight", "two.weight")),
        (Residual, ("stem.weight", "inner.weight", "deep.weight", "outer.weight"), ("head.weight",)),
    ),
)
def test_the_classifier_is_what_the_outputs_come_from(
    net: Any, inner: tuple[str, ...], last: tuple[str, ...]
) -> None:
    model = net()
    structure = structure_of(model)
    assert prunable_weights(model, structure) == inner
    assert set(prunable_weights(model, structure, with_classifier=True)) == {*inner, *last}


def test_embeddings_are_not_pruned() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    from prunecli.graph.groups import find_groups

    structure = find_groups(model.eval(), (torch.zeros(2, 2, dtype=torch.int64),))
    assert prunable_weights(model, structure) == ("2.weight",)


def test_of_a_normalised_weight_only_the_direction_is_pruned() -> None:
    from prunecli.graph.groups import find_groups

    new, old = nn.utils.parametrizations.weight_norm, nn.utils.weight_norm
    for normed, name in ((new, "0.parametrizations.weight.original1"), (old, "0.weight_v")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch says so of the old one
            model = nn.Sequential(normed(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)).eval()
        structure = find_groups(model, (torch.zeros(2, 4),))
        assert prunable_weights(model, structure) == (name,)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    (
        (
            {"wishes": Wishes(budget=Budget.parse("units=0.5"))},
            UsageError,
            "`rounds=3` leaves 51.2% of the weights",
        ),
        ({"wishes": Wishes(method="taylor-fo")}, UsageError, "leave out `--method taylor-fo`"),
        ({"arguments": {"rounds": 0}}, UsageError, "at least 1"),
        ({"arguments": {"percent": 100.0}}, UsageError, "below 100"),
        ({"arguments": {"rewind": 2}}, UsageError, "rewind=2"),
        ({"arguments": {"rewind": 1}, "recipe": replace(RECIPE, patience=0)}, UsageError, "rewind=1"),
    ),
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    training, schedule, _ = replace(IMP, **changes).start()
    with pytest.raises(error, match=message):
        schedule.check(training)


class OneLayer(nn.Linear):
    """Nothing but a classifier."""

    shape = (6,)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(6, 3)


def test_a_lone_classifier_is_refused() -> None:
    training, schedule, _ = replace(IMP, net=OneLayer).start()
    with pytest.raises(NotPrunableError, match="classifier=true"):
        schedule.check(training)
