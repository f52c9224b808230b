"""The quick copy of modules, against `copy.deepcopy`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunecli.graph.copying import aliases, members, named_tensors, walk
from prunecli.graph.deepcopy import deepcopy
from tests.graph.nets import CASES, Case


class Keeper(nn.Module):
    """Holds what modules hold, some of it twice."""

    def __init__(self) -> None:
        super().__init__()
        shared = [1, 2]
        self.one = nn.Linear(2, 3)
        self.two = nn.Sequential(self.one, nn.BatchNorm1d(3))
        self.lists = (shared, shared)
        self.by_name: dict[Any, Any] = {"shared": shared, (1, "a"): OrderedDict(x=torch.ones(2))}
        self.names = {"a", "b"}
        self.place = SimpleNamespace(layer=self.one, whole=[self])
        self.call: Callable[[int], int] = self.double
        self.register_buffer("gone", None)

    def double(self, number: int) -> int:
        return 2 * number


class Own(nn.Linear):
    """Says how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> str:
        return "a copy"


class Restored(nn.Linear):
    """Is told when it is copied."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "restored": True})


def test_what_is_shared_stays_shared() -> None:
    model = Keeper()
    copied = deepcopy(model, {})
    assert copied is not model
    assert copied.one is copied.two[0]
    assert copied.one is copied.place.layer
    assert copied.place.whole[0] is copied
    assert copied.call.__self__ is copied
    assert copied.lists[0] is copied.lists[1]
    assert copied.lists[0] is copied.by_name["shared"]
    assert copied.lists[0] is not model.lists[0]
    assert copied.by_name[1, "a"]["x"] is not model.by_name[1, "a"]["x"]
    assert copied.names == model.names
    assert copied.names is not model.names
    assert copied.gone is None


def test_the_memo_stands_for_tensors() -> None:
    model = Keeper()
    other = nn.Parameter(torch.zeros(3, 2))
    copied = deepcopy(model, {id(model.one.weight): other})
    assert copied.two[0].weight is other


def test_classes_that_say_how_they_are_copied_are_heard() -> None:
    assert deepcopy(Own(2, 2), {}) == "a copy"
    assert deepcopy(nn.Sequential(Restored(2, 2)), {})[0].restored


def test_hooks_are_copied() -> None:
    model = nn.Linear(2, 2)
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    copied = deepcopy(model, {})
    copied(torch.ones(1, 2))
    copied._forward_hooks.clear()
    model(torch.ones(1, 2))
    assert seen == [1, 1]


@pytest.mark.parametrize("each", CASES, ids=lambda case: case.name)
def test_copies_equal_those_of_the_standard_library(each: Case) -> None:
    model = each.build()
    expected, found = copy.deepcopy(model), deepcopy(model, {})
    for (name, module), (copied_name, copied) in zip(walk(expected), walk(found), strict=True):
        assert (name, type(module), list(vars(module))) == (copied_name, type(copied), list(vars(copied)))
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    own = {id(tensor) for tensor in named_tensors(model).values()}
    assert own.isdisjoint(id(tensor) for tensor in named_tensors(found).values())


@pytest.mark.parametrize("each", CASES, ids=lambda case: case.name)
def test_walking_is_what_torch_does(each: Case) -> None:
    model = each.build()
    assert walk(model) == list(model.named_modules())
    assert walk(model, repeated=True) == list(model.named_modules(remove_duplicate=False))
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    assert list(named_tensors(model)) == list(expected)
    assert members(model)[1] == {name for name, _ in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    every |= dict(model.named_buffers(remove_duplicate=False))
    assert set(aliases(model)) == set(every) - set(expected)


def test_modules_that_list_others_are_asked() -> None:
    class Hiding(nn.Sequential):
        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            yield kwargs.get("prefix", ""), self

    model = nn.Sequential(nn.Linear(2, 2), Hiding(nn.Linear(2, 2)), nn.ReLU())
    assert [name for name, _ in walk(model)] == ["", "0", "1", "2"]
    assert list(named_tensors(Hiding(nn.Linear(2, 2)))) == []


def test_walking_by_all_names_meets_shared_modules_again() -> None:
    shared = nn.Sequential(nn.Linear(2, 2))
    model = nn.ModuleList([shared, nn.ModuleList([shared, shared[0]])])
    assert walk(model, repeated=True) == list(model.named_modules(remove_duplicate=False))
    assert len(walk(model)) == 4
