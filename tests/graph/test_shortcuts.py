"""Shortcuts: a trace that takes them says what one that takes none says, whatever is unusual about a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn

from prunecli import find_groups
from prunecli.graph.shortcuts import SHORTCUTS, activation
from prunecli.graph.trace import Trace, trace
from prunecli.graph.tracer import Tracer

from .nets import CASES, Case

IMAGE = (torch.zeros(1, 3, 8, 8),)


def plain(value: Any) -> Any:
    """Return a value in terms of what can be compared."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [(plain(key), plain(each)) for key, each in value.items()]
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    return sorted(value) if isinstance(value, (set, frozenset)) else value


def said(found: Trace) -> Any:
    """Return all that a trace says."""
    findings = {**plain(found.findings), "sizes": None}
    sizes = {
        name: [(label.tolist(), given) for label, given in seen.values()]
        for name, seen in found.findings.sizes.items()
    }
    return plain(found.constraints), findings, list(sizes.items()), plain(found.labels), plain(found.path)


def both_ways(
    monkeypatch: pytest.MonkeyPatch, follow: Callable[[], Any], switch: str = "takes_shortcuts"
) -> tuple[Any, Any]:
    """Follow something with shortcuts and without."""
    shorter = follow()
    with monkeypatch.context() as patch:
        patch.setattr(Tracer, switch, False)
        return shorter, follow()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_traces_say_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = case.build()
    shorter, longer = both_ways(monkeypatch, lambda: said(trace(model, case.example(1))))
    assert shorter == longer


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.name)
def test_groups_are_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = case.build()
    shorter, longer = both_ways(monkeypatch, lambda: plain(find_groups(model, case.example(1))))
    assert shorter == longer


class _Odd(nn.Module):
    """Convolutions and a norm, and something unusual between them."""

    def __init__(self, between: Callable[[_Odd, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.shift = nn.Parameter(torch.ones(1, 8, 8, 8))
        self.between = [between]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the second convolution makes of it."""
        mixed: Tensor = self.two(self.between[0](self, self.one(x)))
        return mixed.mean((2, 3)) @ x.new_ones(6, 2)


def _write_into_a_view(x: Tensor) -> Tensor:
    x[:, :4].relu_()
    return x


def _write_through_a_view(x: Tensor) -> Tensor:
    seen = x.view(1, 8, 64)
    x.relu_()
    return seen.view(1, 8, 8, 8)


def _add_to_a_view(x: Tensor, other: Tensor) -> Tensor:
    x[:, :4].add_(other[:, :4])
    return x


def _write_into_what_is_alike(net: _Odd, x: Tensor) -> Tensor:
    """Write a part of what was the same everywhere, and let it meet positions that differ."""
    spread = x.mean((2, 3), keepdim=True) + torch.zeros(1, 8, 8, 8, device=x.device)
    spread[:, :, :4].relu_()
    return spread + net.shift


def _keep_order(x: Tensor) -> Tensor:
    return x + x.flip(1)


ODD: dict[str, Callable[[_Odd, Tensor], Tensor]] = {
    "a view is written": lambda _, x: _write_into_a_view(x),
    "what another layer made is added to a view": lambda net, x: _add_to_a_view(x, net.norm(net.deep(x))),
    "what has a view is written": lambda _, x: _write_through_a_view(x),
    "positions meet others of their kind": lambda _, x: _keep_order(x),
    "a parameter is added": lambda net, x: x + net.shift,
    "a parameter is rectified": lambda net, x: x + net.shift.relu(),
    "a number is added": lambda _, x: x + 1.5,
    "a multiple is added": lambda net, x: torch.add(x, net.norm(x), alpha=2),
    "added to itself": lambda _, x: x + x,
    "a smaller shape is added": lambda _, x: x + x.mean((2, 3), keepdim=True),
    "a constant is added": lambda _, x: x + torch.ones(1, 8, 8, 8, device=x.device),
    "statistics of the batch": lambda net, x: F.batch_norm(x, None, None, net.norm.weight, training=True),
    "a norm without scale": lambda net, x: F.batch_norm(x, net.norm.running_mean, net.norm.running_var),
    "a norm of a derived scale": lambda net, x: F.batch_norm(
        x, net.norm.running_mean, net.norm.running_var, net.norm.weight + 1, net.norm.bias
    ),
    "one tensor as scale and shift": lambda net, x: F.batch_norm(
        x, net.norm.running_mean, net.norm.running_var, net.norm.bias, net.norm.bias
    ),
    "a derived weight": lambda net, x: F.conv2d(x, net.two.weight.abs(), net.two.bias).repeat(1, 2, 1, 1)[
        :, :8
    ],
    "groups": lambda net, x: net.deep(x),
    "transposed": lambda net, x: F.conv_transpose2d(x, net.deep.weight[:, :1].repeat(1, 8, 1, 1), padding=1),
    "without a batch": lambda net, x: net.norm(
        F.conv2d(x[0], net.one.weight.repeat(1, 3, 1, 1)[:, :8])[None]
    ),
    "channels last": lambda net, x: net.norm(x.to(memory_format=torch.channels_last)).relu(),
    "twice the same weight": lambda net, x: net.norm(net.norm(x)),
    "bounds": lambda _, x: F.hardtanh(x, -2.0, 3.0),
    "a form of gelu": lambda _, x: F.gelu(x, approximate="tanh"),
    "positions are searched": lambda _, x: x + x.argmax(1, keepdim=True).relu(),
    "a part of what is the same everywhere is written": _write_into_what_is_alike,
    "a multiple": lambda _, x: (x * 2.0 + 3) * 4,
    "multiplied in place": lambda net, x: net.norm(x).mul_(x),
    "multiplied by what has a view": lambda _, x: x[:, :4].mul_(x[:, 4:]).repeat(1, 2, 1, 1),
    "multiplied by one number per channel": lambda _, x: x * x.mean((2, 3), keepdim=True),
    "one number per channel, multiplied": lambda _, x: x.mean((3, 2), keepdim=True).sigmoid() * x,
    "multiplied by one number per place": lambda _, x: x * x.mean(1, keepdim=True),
    "multiplied by fewer dimensions": lambda _, x: x * x.mean((0, 2, 3))[:, None, None],
    "multiplied by a parameter": lambda net, x: x * net.shift,
    "multiplied by a constant": lambda _, x: x * torch.ones(1, 8, 1, 1, device=x.device),
    "means of one": lambda _, x: x * x.mean() + x.mean().mean(0),
    "means of all": lambda _, x: x + x.mean((0, 1, 2, 3)) + x.mean(()) + x.mean((0, 1, 2, 3), keepdim=True),
    "means in another type": lambda _, x: x + x.mean((2, 3), keepdim=True, dtype=torch.float64).float(),
    "means of positions in order": lambda net, x: x + net.shift.mean((2, 3), keepdim=True),
    "a filter for every channel, shared": lambda net, x: F.conv2d(
        x, net.deep.weight[:1].repeat(8, 1, 1, 1), padding=1, groups=8
    ),
    "a filter for every channel, without bias": lambda net, x: F.conv2d(
        x, net.deep.weight, padding=1, groups=8
    ),
    "two filters for every channel": lambda net, x: F.conv2d(x[:, :4], net.deep.weight, padding=1, groups=4),
    "two groups": lambda net, x: F.conv2d(x[:, :2], net.deep.weight, padding=1, groups=2),
    "an empty tensor": lambda _, x: x + torch.empty(0, device=x.device).sum(),
}


@pytest.mark.parametrize("between", ODD.values(), ids=ODD.keys())
def test_whatever_is_unusual_is_told_alike(
    between: Callable[[_Odd, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _Odd(between).eval()
    assert torch.isfinite(model(*IMAGE)).all()
    shorter, longer = both_ways(
        monkeypatch, lambda: (said(trace(model, IMAGE)), plain(find_groups(model, IMAGE)))
    )
    assert shorter == longer


@pytest.mark.parametrize("func", [f for f, each in SHORTCUTS.items() if each is activation], ids=str)
def test_activations_are_told_alike(func: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Odd(lambda net, x: func(net.norm(x)) if x.is_meta else x).eval()
    shorter, longer = both_ways(monkeypatch, lambda: said(trace(model, IMAGE)))
    assert shorter == longer


def test_every_shortcut_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = set()
    for func, shortcut in SHORTCUTS.items():

        def noting(*given: Any, shortcut: Any = shortcut) -> Any:
            out = shortcut(*given)
            if out is not None:
                taken.add(shortcut.__name__)
            return out

        monkeypatch.setitem(SHORTCUTS, func, noting)
    trace(_Odd(lambda net, x: (x + net.norm(x)).relu() * x.mean((2, 3), keepdim=True)).eval(), IMAGE)
    assert taken == {shortcut.__name__ for shortcut in (*map(_own, SHORTCUTS.values()),)}


def _own(noting: Any) -> Any:
    return noting.__defaults__[0] if noting.__defaults__ else noting.__kwdefaults__["shortcut"]
