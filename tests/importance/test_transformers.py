"""Methods on transformers whose attention has a twin: gates, scores, and the network left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.importance.gates import refuse_ungated
from tests.graph.cutting import shake
from tests.importance.gated import Setting, gate_gradients, looking
from tests.vision import SIZE, maxvit, swin, swin_v2

BUILDS = (swin, swin_v2, maxvit)


def setting(build: Callable[[], nn.Module]) -> Setting:
    torch.manual_seed(0)
    model = shake(build()).double()
    inputs = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    return Setting(model, find_groups(model, (inputs[:1],)), (inputs,))


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_gates_have_the_gradients_that_parameters_say(build: Callable[[], nn.Module]) -> None:
    where = setting(build)
    assert not any(refuse_ungated(group) for group in where.groups)
    expected = gate_gradients(where, where.inputs)
    with looking(where) as look:
        found = look.gate_gradients
        for name, gradient in found.items():
            torch.testing.assert_close(gradient.sum(0), expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_every_group_is_scored(build: Callable[[], nn.Module]) -> None:
    where = setting(build)
    before = {name: type(module) for name, module in where.model.named_modules()}
    data = [(where.inputs, torch.arange(3))]
    methods = ["taylor-fo", "magnitude", "fisher", "taylor-output"]
    for name, scores in score(where.model, where.structure, data, cross_entropy, methods).items():
        assert scores.by_group.keys() == where.structure.by_name.keys(), name
        for group in where.groups:
            assert scores.by_group[group.name].shape == (group.width,)
            assert scores.by_group[group.name].isfinite().all()
    assert {name: type(module) for name, module in where.model.named_modules()} == before
