"""Tensors that are read at each use: what they are to torch, and what is left of them afterwards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prunecli.on_demand import OnDemand, is_on_demand, joined, mapped

VALUES = torch.arange(12.0).reshape(3, 4)


class Reader:
    """Returns the values, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Tensor:
        self.times += 1
        return VALUES.clone()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def tensor(reader: Reader) -> OnDemand:
    return OnDemand((3, 4), torch.float32, reader)


def test_it_is_read_by_operations_and_by_nothing_else(reader: Reader, tensor: OnDemand) -> None:
    parameter = nn.Parameter(tensor)
    assert (tuple(parameter.shape), parameter.dtype, parameter.device.type) == ((3, 4), torch.float32, "cpu")
    assert repr(tensor) == "OnDemand([3, 4], torch.float32)"
    assert torch.empty_like(parameter, device="meta").is_meta
    assert torch.empty_like(tensor).device.type == "cpu"
    assert reader.times == 0
    assert torch.equal(linear(torch.eye(4), parameter), VALUES.T)
    assert reader.times == 1


def test_copies_and_casts_are_on_demand_too(reader: Reader, tensor: OnDemand) -> None:
    made = [tensor.detach(), tensor.clone(), tensor.to(torch.float64), copy.deepcopy(nn.Parameter(tensor))]
    assert all(isinstance(each, OnDemand) for each in made)
    assert isinstance(made[3], nn.Parameter)
    assert reader.times == 0
    assert torch.equal(made[2] + 0, VALUES.double())
    assert isinstance(copy.deepcopy(tensor), OnDemand)


def test_filling_is_done_again_at_each_use_of_that_one(tensor: OnDemand) -> None:
    filled = tensor.clone()
    filled.index_fill_(1, torch.tensor([0, 2]), 0)
    filled.index_fill_(0, torch.tensor([1]), 0)
    expected = torch.tensor([[0.0, 1, 0, 3], [0, 0, 0, 0], [0, 9, 0, 11]])
    assert torch.equal(filled + 0, expected)
    assert torch.equal(filled + 0, expected)
    assert torch.equal(tensor + 0, VALUES)


@pytest.fixture
def in_parts() -> OnDemand:
    """Return the same, of which nobody may read the whole."""

    def refuse() -> Tensor:
        raise AssertionError("read as a whole")

    return OnDemand((3, 4), torch.float32, refuse, lambda: VALUES.clone().split(2))


@pytest.mark.parametrize("bias", (None, torch.tensor([1.0, 2, 3])))
def test_a_linear_layer_reads_one_part_at_a_time(in_parts: OnDemand, bias: Tensor | None) -> None:
    for data in (torch.eye(4), torch.ones(2, 5, 4)):
        assert torch.equal(linear(data, in_parts, bias), linear(data, VALUES, bias))


def test_parts_are_filled_as_the_whole_is(in_parts: OnDemand) -> None:
    in_parts.index_fill_(0, torch.tensor([0, 2]), 7)
    in_parts.index_fill_(-1, torch.tensor([1]), 8)
    expected = VALUES.clone().index_fill_(0, torch.tensor([0, 2]), 7).index_fill_(1, torch.tensor([1]), 8)
    assert torch.equal(linear(torch.eye(4), in_parts), expected.T)
    assert in_parts.read_parts is not None
    assert torch.equal(joined(in_parts.read_parts(), (3, 4), torch.float32), expected)


@pytest.mark.parametrize("write", (lambda t: t.add_(1), lambda t: torch.add(VALUES, 1, out=t)))
def test_other_writing_is_refused_and_not_lost(tensor: OnDemand, write: object) -> None:
    with pytest.raises(RuntimeError, match="writes to a parameter that is read from its file at each use"):
        write(tensor)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool))
@pytest.mark.parametrize("begin", (0, 3, 4096, 70_001))
def test_a_file_is_mapped_from_any_byte_on(tmp_path: Path, dtype: torch.dtype, begin: int) -> None:
    values = (VALUES % 2).to(dtype)
    raw = values.contiguous().view(torch.uint8).numpy().tobytes()
    (tmp_path / "file").write_bytes(b"x" * begin + raw + b"y")
    tensor = mapped(tmp_path / "file", begin, (3, 4), dtype)
    assert torch.equal(tensor.read(), values)
    tensor.read().zero_()  # its own, not the file's
    assert torch.equal(tensor.read(), values)


def test_a_tensor_of_nothing_needs_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert mapped(tmp_path / "file", 0, (0, 4), torch.float32).read().shape == (0, 4)


def test_a_model_is_on_demand_if_a_parameter_is(tensor: OnDemand) -> None:
    layer = nn.Linear(4, 3)
    assert not is_on_demand(layer)
    layer.weight = nn.Parameter(tensor)
    assert is_on_demand(layer)
