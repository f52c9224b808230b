"""Losses, accuracy, and which samples they are measured on."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunecli.data import (
    Samples,
    batches,
    choose_samples,
    evaluate,
    loss_function,
    main_output,
    sample_digest,
)
from prunecli.errors import DataError, SpecError, UsageError
from prunecli.spec import InputSpec, Metric, ModelSpec, Target, TaskSpec

SPEC = ModelSpec("torchvision:resnet18", inputs=(InputSpec((3,)),))
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 5.0], [9.0, 1.0, 2.0]])
Pair = namedtuple("Pair", ["logits", "aux"])


def with_loss(loss: str, base: Path = Path()) -> ModelSpec:
    return replace(SPEC, task=TaskSpec(loss), base=base)


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    (
        LOGITS,
        (LOGITS, torch.ones(1)),
        [LOGITS],
        (None, LOGITS),
        ((LOGITS, 1), 2),
        Pair(LOGITS, torch.ones(1)),
        {"aux": torch.ones(1), "out": LOGITS},
        {"first": LOGITS, "second": torch.ones(1)},
        Output(torch.ones(1), LOGITS),
    ),
)
def test_the_main_output_is_found(output: Any) -> None:
    assert main_output(output) is LOGITS


@pytest.mark.parametrize("output", (None, 3, (), {}, {"a": None}, "text"))
def test_an_output_without_a_tensor_is_refused(output: Any) -> None:
    with pytest.raises(DataError, match="without a tensor, which no loss can judge"):
        main_output(output)


def test_losses_are_those_of_torch() -> None:
    target = torch.tensor([0, 1, 2, 1])
    cross_entropy = loss_function(SPEC)
    assert cross_entropy((LOGITS, None), target) == functional.cross_entropy(LOGITS, target)
    values = torch.rand(4, 3)
    assert loss_function(with_loss("mse"))(LOGITS, values) == functional.mse_loss(LOGITS, values)
    assert loss_function(with_loss("bce"))(LOGITS, values) == functional.binary_cross_entropy_with_logits(
        LOGITS, values
    )
    single, labels = LOGITS[:, :1], torch.tensor([0, 1, 1, 0])
    expected = functional.binary_cross_entropy_with_logits(single[:, 0], labels.float())
    assert loss_function(with_loss("bce"))(single, labels) == expected


def test_cross_entropy_of_pictures_tokens_and_probabilities() -> None:
    loss = loss_function(SPEC)
    pixels, labels = torch.rand(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    assert loss(pixels, labels) == functional.cross_entropy(pixels, labels)
    tokens, words = torch.rand(2, 7, 11), torch.randint(0, 11, (2, 7))
    assert loss(tokens, words) == functional.cross_entropy(tokens.movedim(-1, 1), words)
    shares = LOGITS.softmax(1)
    assert loss(LOGITS, shares) == functional.cross_entropy(LOGITS, shares)
    ignored = torch.tensor([0, -100, 2, -100])
    assert loss(LOGITS, ignored) == functional.cross_entropy(LOGITS, ignored)


@pytest.mark.parametrize(
    ("loss", "output", "target", "message"),
    (
        (
            "cross-entropy",
            LOGITS,
            torch.tensor([0, 1, 2, 3]),
            "label 3 has no output: the model tells 3 classes apart",
        ),
        ("cross-entropy", LOGITS, torch.tensor([0, 1, 2, -1]), "label -1 has no output"),
        ("cross-entropy", LOGITS, torch.zeros(5, dtype=torch.long), r"Targets of shape \[5\] do not fit"),
        (
            "cross-entropy",
            LOGITS[:, 0],
            torch.tensor([0, 1, 0, 1]),
            'no dimension of classes.*`loss = "bce"`',
        ),
        ("cross-entropy", torch.tensor(1.0), torch.tensor(1), "a single number"),
        ("cross-entropy", LOGITS, {"a": 1}, "Targets are dict; only a loss of your own"),
        ("mse", LOGITS, torch.ones(4), r"Targets of shape \[4\] do not fit outputs of shape \[4, 3\]"),
        ("bce", LOGITS[:, :1], torch.tensor([0, 1, 2, 0]), "bce needs targets from 0 to 1"),
    ),
)
def test_targets_that_do_not_fit_are_refused(loss: str, output: Tensor, target: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loss_function(with_loss(loss))(output, target)


def test_labels_are_smoothed_for_cross_entropy_alone(tmp_path: Path) -> None:
    target = torch.tensor([0, 1, 2, 1])
    expected = functional.cross_entropy(LOGITS, target, label_smoothing=0.1)
    assert loss_function(SPEC, label_smoothing=0.1)((LOGITS, None), target) == expected
    for loss in ("mse", "bce", "mine.py:loss"):
        with pytest.raises(UsageError, match=f'is for `loss = "cross-entropy"`; the spec\'s is `{loss}`'):
            loss_function(with_loss(loss, tmp_path), label_smoothing=0.1)


@pytest.mark.parametrize("loss", ("cross-entropy", "mse", "bce", "mine.py:loss"))
def test_a_loss_says_that_there_are_no_labels(loss: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def loss(output, target): return output.sum()\n")
    spec = with_loss(loss, tmp_path)
    with pytest.raises(DataError, match="The source has no labels for the loss"):
        loss_function(spec)(LOGITS, None)
    with pytest.raises(DataError, match="The source has no labels for the loss"):
        evaluate(Identity(), [((LOGITS,), None)], spec)


def test_a_loss_of_the_user_gets_the_output_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def pair(output, target): return (output[0] - target).mean() + output[1]\n"
        "def many(output, target): return output[0]\n"
        "def number(output, target): return 3.0\n"
    )
    loss = loss_function(with_loss("mine.py:pair", tmp_path))
    assert loss((torch.ones(2), torch.tensor(2.0)), torch.zeros(2)) == 3
    with pytest.raises(DataError, match=r"`mine.py:many` returned \[2\], not a tensor with one number"):
        loss_function(with_loss("mine.py:many", tmp_path))((torch.ones(2),), torch.zeros(2))
    with pytest.raises(DataError, match="`mine.py:number` returned float"):
        loss_function(with_loss("mine.py:number", tmp_path))((torch.ones(2),), torch.zeros(2))
    untrusted = replace(with_loss("mine.py:pair", tmp_path), trusted=False)
    with pytest.raises(SpecError, match="is code outside"):
        loss_function(untrusted)
    with pytest.raises(SpecError, match="has no `absent`"):
        loss_function(with_loss("mine.py:absent", tmp_path))


class Identity(nn.Module):
    """Answers with its input, and remembers the mode it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.drop(x)


def test_accuracy_is_weighted_by_samples_and_not_by_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.rand(11, 7), torch.randint(0, 7, (11,))
    model = Identity().train()
    model.frozen.eval()
    found = evaluate(model, (((logits[i : i + 4],), labels[i : i + 4]) for i in range(0, 11, 4)), SPEC)
    order = logits.argsort(dim=1, descending=True)
    assert found.samples == 11
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, labels)))
    assert found.top1 == pytest.approx(sum(int(order[i, 0] == labels[i]) for i in range(11)) / 11)
    assert found.top5 == pytest.approx(sum(int(labels[i] in order[i, :5]) for i in range(11)) / 11)
    assert (model.training, model.drop.training, model.frozen.training) == (True, True, False)


@pytest.mark.parametrize(
    ("loss", "output", "target", "top1", "top5"),
    (
        ("cross-entropy", LOGITS, torch.tensor([0, 1, 2, 1]), 0.75, None),
        ("cross-entropy", LOGITS, torch.eye(3)[[0, 1, 2, 1]], 0.75, None),
        ("cross-entropy", LOGITS, torch.tensor([0, -100, 1, 1]), 1 / 3, None),
        ("mse", LOGITS, torch.zeros(4, 3), None, None),
        ("bce", LOGITS[:, :1] - 1.5, torch.tensor([1, 0, 1, 1]), 0.75, None),
        ("cross-entropy", torch.eye(3).reshape(1, 3, 3), torch.tensor([[0, 1, 1]]), 2 / 3, None),
    ),
)
def test_accuracy_has_a_meaning_or_is_absent(
    loss: str, output: Tensor, target: Tensor, top1: float | None, top5: float | None
) -> None:
    found = evaluate(Identity(), [((output,), target)], with_loss(loss))
    assert found.top1 == (None if top1 is None else pytest.approx(top1))
    assert found.top5 == top5


def test_named_inputs_are_passed_by_name() -> None:
    assert evaluate(Identity(), [({"x": LOGITS}, torch.tensor([0, 1, 2, 0]))], SPEC).top1 == 1


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="no batches"):
        evaluate(Identity(), [], SPEC)


def test_the_mode_comes_back_after_a_failure() -> None:
    model = Identity().train()
    with pytest.raises(DataError):
        evaluate(model, [((LOGITS,), torch.tensor([9, 9, 9, 9]))], SPEC)
    assert model.training


def numbers(count: int, source: str = "npz:/home/someone/a.npz") -> Samples:
    def fetch(positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        labels = torch.tensor(list(positions))
        return labels[:, None].float().expand(-1, 3), labels

    return Samples(source, SPEC, fetch, range(count))


def labels_of(dataset: Samples, *args: Any, **options: Any) -> list[int]:
    return [int(label) for _, targets in batches(dataset, *args, **options) for label in targets]


def test_all_samples_come_in_order_and_some_at_random() -> None:
    data = numbers(100)
    assert labels_of(data, 7) == list(range(100))
    some = labels_of(data, 7, 20, 1)
    assert some == labels_of(data, 13, 20, 1)
    assert len(set(some)) == 20
    assert some != sorted(some)
    assert some != labels_of(data, 7, 20, 2)
    assert labels_of(data, 7, 30, 1)[:20] == some
    assert sorted(labels_of(data, 7, 1000, 1)) == list(range(100))


def test_the_digest_tells_which_samples_were_used() -> None:
    data = numbers(100)
    digest = sample_digest(data, 20, 1)
    assert digest == sample_digest(numbers(100, "npz:/elsewhere/a.npz"), 20, 1)
    others = (
        sample_digest(data, 20, 2),
        sample_digest(data, 21, 1),
        sample_digest(numbers(99), 20, 1),
        sample_digest(numbers(100, "npz:b.npz"), 20, 1),
    )
    assert len({digest, *others}) == 5


def test_inputs_take_the_dtype_asked_for() -> None:
    ((inputs, targets),) = batches(numbers(4), 4, dtype=torch.float64)
    assert isinstance(inputs, tuple)
    assert (inputs[0].dtype, targets.dtype) == (torch.float64, torch.int64)


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1"):
        batches(numbers(4), 0)
    with pytest.raises(DataError, match="at least 1"):
        choose_samples(4, 0, 0)


def test_samples_serve_a_data_loader() -> None:
    loader = torch.utils.data.DataLoader(numbers(6), batch_size=4)
    inputs, targets = next(iter(loader))
    assert inputs[0].shape == (4, 3)
    assert not math.isnan(float(targets.float().mean()))


def test_an_autoencoder_is_judged_by_its_loss_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def loss(output, target): return (output[0] - target).square().mean() + output[1]\n"
    )
    task = TaskSpec("mine.py:loss", Metric.LOSS, Target.INPUT)

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x / 2, torch.tensor(3.0)

    found = evaluate(Halved(), [((LOGITS,), LOGITS)], replace(SPEC, task=task, base=tmp_path))
    assert (found.top1, found.top5) == (None, None)
    assert found.loss == pytest.approx(float((LOGITS / 2).square().mean()) + 3)
