"""Which modules are alike: what can be seen of them decides, and what cannot be seen into is like nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import nn

from prunecli.graph.alike import NOT_COMPARABLE, Kinds, repeated_blocks


class Holder(nn.Module):
    """Holds one attribute beside a layer."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.value = value


def with_hook() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: None)
    return module


def with_forward() -> nn.Module:
    module = nn.Linear(2, 2)
    module.forward = F.relu  # type: ignore[method-assign, assignment]
    return module


@pytest.mark.parametrize(
    "make",
    (
        lambda: nn.Conv2d(2, 4, 3, padding=1),
        lambda: nn.BatchNorm1d(3),
        lambda: Holder((1, [2.0, "a"], {"b": None})),
        lambda: Holder(F.relu),
        lambda: Holder({torch.float32, torch.int8}),
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
    ),
)
def test_the_same_code_settings_and_shapes_are_alike(make: Callable[[], nn.Module]) -> None:
    kinds = Kinds()
    assert kinds.of(make()) == kinds.of(make()) != NOT_COMPARABLE


@pytest.mark.parametrize(
    ("one", "other"),
    (
        (nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3, stride=2)),
        (nn.Linear(2, 3), nn.Linear(3, 2)),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False)),
        (nn.Linear(2, 2), nn.Linear(2, 2).double()),
        (nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)),
        (nn.Dropout(), nn.Dropout().eval()),
        (Holder(1), Holder(True)),
        (Holder(1), Holder(1.0)),
        (Holder((1, 2)), Holder([1, 2])),
        (Holder((1, True)), Holder((1, 1))),
        (Holder({"a": 1}), Holder({"a": 2})),
        (Holder(F.relu), Holder(F.gelu)),
        (Holder(nn.Linear(2, 2)), Holder(nn.Linear(2, 3))),
    ),
    ids=repr,
)
def test_whatever_differs_is_seen(one: nn.Module, other: nn.Module) -> None:
    kinds = Kinds()
    assert NOT_COMPARABLE not in {kinds.of(one), kinds.of(other)}
    assert kinds.of(one) != kinds.of(other)


@pytest.mark.parametrize(
    "module",
    (
        Holder(object()),
        Holder(torch.ones(2)),
        Holder([nn.ReLU()]),
        Holder((1, [object()])),
        with_hook(),
        with_forward(),
    ),
    ids=("object", "tensor", "module in a list", "object in a list", "hook", "code of its own"),
)
def test_what_cannot_be_seen_into_is_like_nothing(module: nn.Module) -> None:
    kinds = Kinds()
    assert kinds.of(module) == NOT_COMPARABLE
    assert kinds.of(nn.Sequential(module)) == NOT_COMPARABLE
    assert kinds.has_changed(module)


def test_changes_are_noticed() -> None:
    module, kinds = nn.Sequential(Holder(1)), Kinds()
    kinds.of(module)
    assert not kinds.has_changed(module)
    module[0].value = 2
    assert kinds.has_changed(module)


@pytest.mark.parametrize(
    "change",
    (
        lambda module: module.value.append(2),
        lambda module: module.deep[0].append(2),
        lambda module: setattr(module, "other", 1),
        lambda module: delattr(module, "value"),
        lambda module: setattr(module, "layer", nn.ReLU()),
        lambda module: setattr(module.layer, "bias", None),
        lambda module: setattr(module.layer.weight, "data", torch.ones(3, 2)),
        lambda module: module.layer.register_forward_hook(lambda *_: None),
        lambda module: module.layer.eval(),
        lambda module: setattr(module, "forward", F.relu),
    ),
)
def test_every_change_is_noticed(change: Callable[[nn.Module], object]) -> None:
    module, kinds = Holder([1]), Kinds()
    kinds.of(module)
    assert not kinds.has_changed(module)
    module.value = [1]  # another list, which is equal
    assert not kinds.has_changed(module)
    module.deep = ([1],)
    kinds = Kinds()
    kinds.of(module)
    change(module)
    assert kinds.has_changed(module)


def test_blocks_are_the_outermost_modules_that_are_repeated() -> None:
    def block(width: int) -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Linear(width, width), nn.ReLU()), nn.Linear(width, width))

    model = nn.Sequential(block(2), block(2), block(3), nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(repeated_blocks(model.named_modules(), Kinds())) == ["0", "1"]
