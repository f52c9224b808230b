"""Scores and masks of whole networks: nothing of the model changes, steps and samples are as they should."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import BudgetError, DataError, ScoreError, UsageError
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import _TABLES, Granularity, MethodInfo, Needs, method, methods
from prunecli.named import Table
from prunecli.plan import Scope
from prunecli.weights import (
    Network,
    RatioBase,
    Selection,
    WeightBudget,
    WeightScores,
    choose_masks,
    score_weights,
)
from prunecli.weights.engine import balanced
from tests.weights.lent import bias_free, lend, samples

EXAMPLE = torch.zeros(1, 6, dtype=torch.float64)
HALF = WeightBudget(Fraction(2), RatioBase.PRUNABLE)
SEEN: list[int] = []
"""How many weights were left, each time that `stepwise` scored."""


class Stepwise:
    """Magnitude in steps.

    score = |w|, and nothing else.
    """

    steps = 4

    def score(self, network: Network, batches: Iterable[MicroBatch]) -> WeightScores:
        """Return the sizes."""
        masks = network.masks or {name: torch.ones_like(each) for name, each in network.weights.items()}
        SEEN.append(sum(int(mask.sum()) for mask in masks.values()))
        network.known["times"] = network.known.get("times", 0) + 1
        return {name: weight.abs() for name, weight in network.weights.items()}

    def notes(self, network: Network) -> tuple[str, ...]:
        """Say how often it scored."""
        return (f"{network.known['times']} times",)


class Broken:
    """Not a number.

    score = nan in one place.
    """

    def score(self, network: Network, batches: Iterable[MicroBatch]) -> WeightScores:
        """Return ones, and one of the values that are none."""
        scores = {name: torch.ones_like(weight) for name, weight in network.weights.items()}
        scores["2.weight"][0, 0] = torch.nan
        return scores


@pytest.fixture(autouse=True)
def _two_more_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter the two methods above, for one test each time."""
    table: Table[MethodInfo] = Table("method")
    for info in methods(Granularity.WEIGHT):
        table.enter(info)
    monkeypatch.setitem(_TABLES, Granularity.WEIGHT, table)  # type: ignore[arg-type]
    for name, kind in (("stepwise", Stepwise), ("broken", Broken)):
        method(name, needs=Needs.PARAMETERS, source="here", granularity=Granularity.WEIGHT)(kind)
    SEEN.clear()


def test_steps_follow_an_exponential_schedule() -> None:
    model = bias_free(6, 20, 34)  # 800 weights
    masking = choose_masks(lend(model, EXAMPLE, "stepwise"), WeightBudget(Fraction(16)))
    assert SEEN == [800, 400, 200, 100]  # N (k / N)^(i / n)
    assert (masking.count, masking.kept, masking.prunable) == (50, 50, 800)
    assert masking.about.notes == ("4 times",)


def test_steps_end_where_one_step_would() -> None:
    model = bias_free(6, 20, 34)
    stepwise, once = (choose_masks(lend(model, EXAMPLE, name), HALF) for name in ("stepwise", "magnitude"))
    assert all(torch.equal(stepwise.masks[name], once.masks[name]) for name in once.masks)


@pytest.mark.parametrize("name", ("stepwise", "magnitude"))
@pytest.mark.parametrize("scope", Scope)
def test_what_is_masked_never_comes_back(name: str, scope: Scope) -> None:
    model = bias_free(6, 20, 34)
    first = choose_masks(lend(model, EXAMPLE, "random"), HALF).masks
    lender = lend(model, EXAMPLE, name, masks={"0.weight": first["0.weight"]})  # what is not named is whole
    masking = choose_masks(lender, HALF, Selection(scope))
    assert masking.kept == 400
    assert not (masking.masks["0.weight"] & ~first["0.weight"]).any()
    few = replace(lender, masks=first)
    assert choose_masks(few, WeightBudget(Fraction(1)), Selection(scope)).kept == 400  # all that is left


def test_a_budget_is_checked_before_the_work() -> None:
    lender = lend(bias_free(6, 20, 34), EXAMPLE, "stepwise")
    with pytest.raises(BudgetError, match="keep 240 weights, and the budget only 50"):
        choose_masks(lender, WeightBudget(Fraction(16)), Selection(min_keep=120))
    assert not SEEN


def test_what_must_stay_is_counted_among_what_is_left() -> None:
    few = (torch.arange(680) < 50).reshape(34, 20)
    lender = lend(bias_free(6, 20, 34), EXAMPLE, "magnitude", masks={"2.weight": few})
    selection = Selection(keep_layer={"2": 0.9})  # 612 of 680, and 50 are left
    masking = choose_masks(lender, WeightBudget(Fraction(8), RatioBase.PRUNABLE), selection)
    assert {name: int(mask.sum()) for name, mask in masking.masks.items()} == {"0.weight": 50, "2.weight": 50}


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(
        ScoreError, match="`broken` gives 1 of 8 weights of `2.weight` a score that is not finite"
    ):
        choose_masks(lend(bias_free(6, 4, 2), EXAMPLE, "broken"), HALF)


def test_what_is_pruned_counts_whole_models() -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))  # 60 + 10 + 20 + 2
    masking = choose_masks(
        lend(model, EXAMPLE.float(), "magnitude", with_classifier=False), WeightBudget(Fraction(2))
    )
    assert list(masking.masks) == ["0.weight"]
    assert (masking.count, masking.parameters, masking.prunable) == (14, 92, 60)  # 92 / 2 - 32
    assert masking.budget.text == "ratio=2"
    assert masking.about.samples == 0


def test_a_layer_without_weights_has_collapsed() -> None:
    model = bias_free(6, 4, 2)
    model[2].weight.data.mul_(1e-6)
    masking = choose_masks(lend(model, EXAMPLE, "magnitude"), HALF)
    assert masking.collapsed == ("2.weight",)


# The sample


def test_samples_are_told_of() -> None:
    batch = samples((6,), 10, 2)
    _, about = score_weights(lend(bias_free(6, 4, 2), EXAMPLE, "snip", [batch, batch], batch_size=8))
    assert (about.samples, about.batches, about.micro_batch, about.score_bn) == (20, 3, 8, "eval")


def test_a_method_that_needs_samples_says_so() -> None:
    model = bias_free(6, 4, 2)
    with pytest.raises(DataError, match="`snip` looks at samples; there are none"):
        score_weights(lend(model, EXAMPLE, "snip"))
    with pytest.raises(DataError, match="The sample is empty"):
        score_weights(lend(model, EXAMPLE, "snip", []))
    with pytest.raises(DataError, match="`snip` needs labelled samples and a loss; there is no loss"):
        score_weights(lend(model, EXAMPLE, "snip", [samples((6,), 10, 2)], loss_fn=None))


def test_names_that_nobody_knows_are_refused() -> None:
    model = bias_free(6, 4, 2)
    with pytest.raises(UsageError, match="`fpgm` scores units, not weights"):
        score_weights(lend(model, EXAMPLE, "fpgm"))
    with pytest.raises(UsageError, match="No argument `step` in `synflow`. Did you mean `steps`"):
        score_weights(lend(model, EXAMPLE, "synflow", arguments={"step": "3"}))


def labelled(*labels: list[int]) -> list[MicroBatch]:
    """Return batches whose inputs are the numbers of the samples."""
    numbers = torch.arange(sum(map(len, labels)))
    parts = numbers.split([len(each) for each in labels])
    return [
        MicroBatch((part,), torch.tensor(each), len(each)) for part, each in zip(parts, labels, strict=True)
    ]


def taken(batches: list[MicroBatch]) -> list[list[int]]:
    return [tensor.tolist() for batch in batches for tensor in batch.inputs]  # type: ignore[union-attr]


def test_the_first_samples_of_each_class_are_taken_in_order() -> None:
    batches = labelled([0, 0, 1, 0], [2, 1, 1, 2], [2, 1])
    found = balanced(batches, 2)
    assert taken(found) == [[0, 1, 2, 4], [5, 7]]  # joined to batches as large as those given
    assert [batch.targets.tolist() for batch in found] == [[0, 0, 1, 2], [1, 2]]
    assert taken(balanced(batches, 0)) == taken(batches)


def test_too_few_samples_of_a_class_are_refused() -> None:
    with pytest.raises(
        DataError, match="3 samples of each class are wanted, and of one there are only 2 among 6"
    ):
        balanced(labelled([0, 0, 1], [1, 1, 1]), 3)


@pytest.mark.parametrize("labels", (torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64)))
def test_labels_that_are_no_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match="the labels are no classes. Use `--method-arg per_class=0`"):
        balanced([MicroBatch((torch.zeros(3),), labels, 3)], 2)


def test_samples_without_labels_are_of_no_class() -> None:
    with pytest.raises(DataError, match="of each class are wanted, and these have no labels"):
        balanced([MicroBatch((torch.zeros(3),), None, 3)], 2)
