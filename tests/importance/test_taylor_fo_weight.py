"""`taylor-fo-weight` against a twin with plain loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunecli.importance import score
from tests.importance.test_taylor_fo import by_hand
from tests.structures import Case, conv_norm, mlp, residual

MADE_BY = {
    "mlp": {"0": ["0"], "2": ["2"]},
    "conv_norm": {"0": ["0"], "3": ["3"]},
    "residual": {"stem": ["stem", "out1", "out2"], "in1": ["in1"], "in2": ["in2"]},
}


def twin(case: Case, batches: list) -> dict[str, list[float]]:
    """Score weight by weight, as METHODS 3.5 says it."""
    scores = {name: [0.0] * group.width for name, group in case.structure.by_name.items()}
    for (inputs,), targets in batches:
        case.model.zero_grad()
        cross_entropy(case.model(inputs), targets).backward()
        for name, layers in MADE_BY[case.name].items():
            for weight in (case.model.get_parameter(f"{layer}.weight") for layer in layers):
                for unit in range(len(weight)):
                    for w, g in zip(
                        weight[unit].detach().flatten(), weight.grad[unit].flatten(), strict=True
                    ):
                        scores[name][unit] += float(w * g) ** 2 / len(batches)
    return scores


@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
def test_agrees_with_plain_loops(make: Callable[[], Case]) -> None:
    case = make()
    batches = [case.batch(5, seed=1), case.batch(5, seed=2)]
    found = score(case.model, case.structure, batches, cross_entropy, ["taylor-fo-weight"], micro_batch=5)[
        "taylor-fo-weight"
    ].by_group
    for name, values in twin(case, batches).items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-9)


def test_solved_by_hand() -> None:
    model, structure = by_hand(gated=True)
    # w g = (3, -1, 0) x (2, 1, 4) x = (6, -1, 0) for x = 1.
    inputs = torch.ones(1, 1, dtype=torch.float64)
    found = score(model, structure, [(inputs, torch.zeros(1))], lambda y, _: y.mean(), ["taylor-fo-weight"])
    assert found["taylor-fo-weight"].by_group["0"].tolist() == [36, 1, 0]


def test_squares_do_not_vanish_in_half_precision() -> None:
    model, structure = by_hand(gated=True)
    model.bfloat16()
    inputs = torch.full((1, 1), 1e-20, dtype=torch.bfloat16)
    found = score(model, structure, [(inputs, torch.zeros(1))], lambda y, _: y.mean(), ["taylor-fo-weight"])
    assert found["taylor-fo-weight"].by_group["0"].tolist() == pytest.approx([36e-40, 1e-40, 0], rel=0.05)
