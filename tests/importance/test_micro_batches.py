"""Batches of any size become micro-batches of one size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunecli.errors import DataError, UsageError
from prunecli.importance.micro_batches import micro_batches


@pytest.mark.parametrize(
    ("sizes", "expected"),
    (
        ([4, 4], [4, 4]),
        ([10], [4, 4, 2]),
        ([1, 2, 3, 4], [4, 4, 2]),
        ([3], [3]),
        ([], []),
    ),
)
def test_cuts_and_joins(sizes: list[int], expected: list[int]) -> None:
    samples = torch.arange(sum(sizes))
    batches = [((part,), part * 2) for part in samples.split(sizes)] if sizes else []
    found = list(micro_batches(batches, 4))
    assert [batch.samples for batch in found] == expected
    assert [len(batch.targets) for batch in found] == expected
    if found:
        assert torch.equal(torch.cat([batch.inputs[0] for batch in found]), samples)
        assert torch.equal(torch.cat([batch.targets for batch in found]), samples * 2)


def test_batches_of_the_right_size_are_not_copied() -> None:
    inputs = torch.zeros(4, 3)
    (found,) = micro_batches([((inputs,), torch.zeros(4))], 4, "cpu")
    assert found.inputs[0] is inputs


def test_keyword_inputs_and_nested_targets_stay_together() -> None:
    def batch(first: int) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
        rows = torch.arange(first, first + 2)
        return {"text": rows, "mask": rows + 10}, {"boxes": (rows + 20, rows + 30)}

    (found,) = micro_batches([batch(0), batch(2)], 4)
    assert {name: tensor.tolist() for name, tensor in found.inputs.items()} == {
        "text": [0, 1, 2, 3],
        "mask": [10, 11, 12, 13],
    }
    assert [tensor.tolist() for tensor in found.targets["boxes"]] == [[20, 21, 22, 23], [30, 31, 32, 33]]


def test_targets_may_be_missing() -> None:
    samples = torch.arange(10)
    found = list(micro_batches([((part,), None) for part in samples.split(3)], 4))
    assert [batch.samples for batch in found] == [4, 4, 2]
    assert all(batch.targets is None for batch in found)
    assert found[0].cut(1, 3).targets is None


def test_the_digest_is_that_of_inputs_and_targets() -> None:
    inputs, targets = torch.arange(4.0), torch.arange(4)

    def digest(inputs: Tensor, targets: Tensor | None) -> str:
        (found,) = micro_batches([((inputs,), targets)], 4)
        return found.digest

    assert digest(inputs, targets) == digest(inputs.clone(), targets.clone())
    others = ((inputs + 1, targets), (inputs, targets + 1), (inputs.bfloat16(), targets), (inputs, None))
    assert len({digest(inputs, targets), *(digest(*each) for each in others)}) == 5


@pytest.mark.parametrize("targets", (torch.zeros(3), torch.zeros(())))
def test_refuses_a_batch_that_does_not_fit_together(targets: Tensor) -> None:
    with pytest.raises(DataError, match=r"Batch 0: expected as many samples .* \[2, 5\]"):
        list(micro_batches([((torch.zeros(2, 5),), targets)], 2))


def test_refuses_what_is_no_tensor() -> None:
    with pytest.raises(DataError, match="holds a str"):
        list(micro_batches([((torch.zeros(2),), "cat")], 2))


def test_refuses_a_size_of_nothing() -> None:
    with pytest.raises(UsageError, match="at least one sample, not 0"):
        list(micro_batches([], 0))
