"""Reasons show the line of the model's code that stands in the way, and what frees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunecli.graph.groups import find_groups
from prunecli.graph.source import LONGEST, line_of
from tests.graph.cutting import prune_and_prove, shake


class Computed(nn.Module):
    """Attention as many write it: the size of a head is computed from the width of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.qkv, self.proj = nn.Linear(3, 24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.out = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        query, key, value = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attend(query, key, value).transpose(1, 2)
        return self.out(x + self.proj(mixed.reshape(batch, length, width))).mean(1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(-2, -1) * 6**-0.5).softmax(-1) @ value


class Kept(Computed):
    """The same, with the size of a head in an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 6

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, _ = x.shape
        shape = (batch, length, 3, self.heads, self.head_dim)
        query, key, value = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attend(query, key, value).transpose(1, 2)
        return self.out(x + self.proj(mixed.reshape(batch, length, -1))).mean(1)


class Asserting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if x.shape[-1] != 8:
            raise ValueError("eight or nothing")
        return self.two(x)


def test_a_size_that_is_computed_is_shown() -> None:
    structure = find_groups(Computed(), (torch.zeros(1, 5, 3),))
    assert structure.groups == ()
    reasons = {frozen.reason for frozen in structure.frozen if frozen.op == "view"}
    assert reasons
    for reason in reasons:
        assert reason.startswith(
            "`view` fails once it is cut, at `query, key, value = self.qkv(x).reshape(shape)"
        )
        assert "(test_source.py:" in reason
        assert "is invalid for input of size" in reason


def test_a_size_of_its_own_can_be_cut() -> None:
    torch.manual_seed(0)
    structure, _, parity = prune_and_prove(shake(Kept()), (torch.randn(2, 5, 3),))
    assert sorted(group.width for group in structure.groups) == [4, 6, 24]
    assert parity.structure_error <= 1e-9


def test_code_that_raises_is_shown() -> None:
    (reason,) = {frozen.reason for frozen in find_groups(Asserting(), (torch.zeros(1, 3),)).frozen} - {
        "is an output of the network"
    }
    assert "the code of the model fails once it is cut, at `raise ValueError(" in reason
    assert reason.endswith("eight or nothing")


def test_only_lines_of_the_model_are_shown() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.zeros(2).view(3)
    assert line_of(found.value).startswith("`torch.zeros(2).view(3)` (test_source.py:")
    with pytest.raises(ZeroDivisionError) as typed:
        exec("1 / 0", {"__name__": "typed"})
    assert "exec(" in line_of(typed.value)  # code without a file has no line
    assert line_of(ValueError("never raised")) == ""


def test_long_lines_are_cut_short() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.zeros(2).view(3) + torch.zeros(3) + torch.zeros(3) + torch.zeros(3) + torch.zeros(3) * 1000
    code = line_of(found.value).split("`")[1]
    assert len(code) == LONGEST
    assert code.endswith("...")
