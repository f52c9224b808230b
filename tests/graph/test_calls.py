"""Keys of calls, and where groups say that their units are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn

from prunecli.graph.calls import CallWatch, following
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import CallKey, SiteKind
from prunecli.graph.trace import plain_kernels
from prunecli.graph.twins import installed
from tests.graph.nets import BY_NAME, CASES, Case


class Noting(CallWatch):
    def __init__(self, modules: Any) -> None:
        super().__init__(modules)
        self.keys: list[CallKey] = []

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        self.keys.append(key)
        return func(*args, **kwargs)


def keys(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[CallKey]:
    with following(model) as modules, Noting(modules) as watch:
        model(*inputs)
    return watch.keys


@pytest.mark.parametrize("name", ("Residual", "Dense", "ViewAttention", "EncoderLayer", "RawParameters"))
def test_keys_do_not_depend_on_gradients_or_on_the_batch(name: str) -> None:
    case = BY_NAME[name]
    torch.manual_seed(0)
    model = case.build().eval()
    found = []
    for wanted, batch in ((True, 2), (False, 5)):
        model.requires_grad_(wanted)
        with plain_kernels(), torch.set_grad_enabled(wanted):
            found.append(keys(model, case.example(batch)))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])


@pytest.mark.parametrize("case", [c for c in CASES if c.groups], ids=lambda c: c.name)
def test_every_site_is_met_by_a_real_forward_pass(case: Case) -> None:
    torch.manual_seed(0)
    model = case.build().eval()
    structure = find_groups(model, case.example(1))
    with plain_kernels(), installed(model, structure.rewritten):
        met = set(keys(model, case.example(2)))
    assert {site.call for group in structure.groups for site in group.sites} <= met


class Functional(nn.Module):
    """The same function called twice in the code of one module, in two manners."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        return self.three(self.two(x).relu_())


def sites(model: nn.Module, *shape: int) -> dict[tuple[str, SiteKind], list[CallKey]]:
    found: dict[tuple[str, SiteKind], list[CallKey]] = {}
    for group in find_groups(model.eval(), (torch.zeros(1, *shape),)).groups:
        for site in group.sites:
            found.setdefault((group.name, site.kind), []).append(site.call)
    return found


def test_functions_that_rectify_are_sites_of_the_module_that_calls_them() -> None:
    found = sites(Functional(), 4)
    assert found["one", SiteKind.RECTIFIED] == [CallKey("", "relu", 0)]
    assert found["two", SiteKind.RECTIFIED] == [CallKey("", "relu_", 0)]
    assert found["one", SiteKind.MADE] == [CallKey("one", "linear", 0)]
    assert found["one", SiteKind.READ] == [CallKey("two", "linear", 0)]


def test_weights_that_are_computed_from_parameters_make_units_too() -> None:
    found = sites(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)), 4)
    assert {(kind, key.module) for (_, kind), calls in found.items() for key in calls} == {
        (SiteKind.MADE, "0"),
        (SiteKind.READ, "1"),
    }


def test_a_module_that_runs_again_makes_its_units_again() -> None:
    found = find_groups(BY_NAME["ReusedModule"].build(), BY_NAME["ReusedModule"].example(1))
    made = [site.call for site in found.groups[0].sites if site.kind is SiteKind.MADE]
    assert made == [CallKey("stem", "conv2d", 0), *(CallKey("shared", "conv2d", n) for n in range(3))]


def test_joining_units_makes_none() -> None:
    for name in ("Dense", "Inception", "SumOfHalves"):
        found = find_groups(BY_NAME[name].build(), BY_NAME[name].example(1))
        made = {s.call.function for g in found.groups for s in g.sites if s.kind is SiteKind.MADE}
        assert "cat" not in made


def test_hooks_are_gone_after_a_failure() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    model = nn.Sequential(nn.Linear(2, 2), Failing())
    with pytest.raises(ValueError, match="no"), following(model):
        model(torch.zeros(1, 2))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
