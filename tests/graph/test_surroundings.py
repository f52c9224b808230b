"""What the code of a block can see: variables that it names are looked at, libraries are not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from prunecli.graph.surroundings import Surroundings

NUMBER, LIST, DICT, HOLDER = 1, [1], {"a": 1}, SimpleNamespace(number=1, rows=[1])


def helper() -> int:
    return NUMBER


class Seeing(nn.Module):
    """Names variables in a method, a property and a function that it calls."""

    rate = 1

    @property
    def total(self) -> int:
        return sum(LIST) + len(DICT)

    def forward(self, x: Tensor) -> Tensor:
        return x * (helper() + HOLDER.number + self.total + sum(each for each in LIST))


def _set_number(value: int) -> None:
    globals()["NUMBER"] = value


@pytest.mark.parametrize(
    ("change", "undo"),
    (
        (lambda: _set_number(2), lambda: _set_number(1)),
        (lambda: LIST.append(1), LIST.pop),
        (lambda: DICT.update(b=1), lambda: DICT.pop("b")),
        (lambda: setattr(HOLDER, "number", 2), lambda: setattr(HOLDER, "number", 1)),
        (lambda: HOLDER.rows.append(1), lambda: HOLDER.rows.pop()),
        (lambda: setattr(Seeing, "rate", 2), lambda: setattr(Seeing, "rate", 1)),
    ),
    ids=("number", "list", "dict", "object", "list in an object", "class"),
)
def test_changes_are_seen(change: Callable[[], Any], undo: Callable[[], Any]) -> None:
    around = Surroundings(Seeing().modules())
    before = around.state()
    change()
    after = around.state()
    undo()
    assert before == around.state() != after


def test_what_functions_remember_is_seen() -> None:
    kept: list[Tensor] = []

    def act(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    module = nn.ReLU()
    module.act = act
    around = Surroundings([module])
    before = around.state()
    act(torch.ones(1))
    assert around.state() != before


def test_a_variable_without_a_value_is_one() -> None:
    def act(x: Tensor) -> Tensor:
        return x if late else -x

    module = nn.ReLU()
    module.act = act
    around = Surroundings([module])
    before = around.state()
    late = True
    assert around.state() != before


def test_running_a_network_of_a_library_changes_nothing() -> None:
    model = torchvision.models.mobilenet_v2().eval()
    around = Surroundings(model.modules())
    before = around.state()
    model(torch.zeros(1, 3, 32, 32))
    assert around.state() == before
