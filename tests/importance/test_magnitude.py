"""`magnitude` and `magnitude-l1` against twins with plain loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prunecli.errors import ScoreError
from prunecli.graph.structure import Group
from prunecli.importance import score
from tests.importance.test_taylor_fo import by_hand
from tests.importance.test_taylor_fo_weight import MADE_BY
from tests.structures import Case, conv_norm, member, mlp, residual, structure_of

POWERS = {"magnitude": 2, "magnitude-l1": 1}


def twin(case: Case, power: int) -> dict[str, list[float]]:
    """Return (sum of |w|^power)^(1/power) over all weights that make each unit."""
    scores = {}
    for name, layers in MADE_BY[case.name].items():
        scores[name] = [0.0] * case.structure.by_name[name].width
        for unit in range(len(scores[name])):
            for layer in layers:
                for w in case.model.get_parameter(f"{layer}.weight")[unit].detach().flatten():
                    scores[name][unit] += abs(float(w)) ** power
            scores[name][unit] **= 1 / power
    return scores


@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
@pytest.mark.parametrize("method", tuple(POWERS))
def test_agrees_with_plain_loops(make: Callable[[], Case], method: str) -> None:
    case = make()
    found = score(case.model, case.structure, methods=[method])[method].by_group
    for name, values in twin(case, POWERS[method]).items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("method", tuple(POWERS))
def test_solved_by_hand(method: str) -> None:
    model, structure = by_hand(gated=True)
    assert score(model, structure, methods=[method])[method].by_group["0"].tolist() == [3, 1, 0]


@pytest.mark.parametrize("method", (*POWERS, "taylor-fo-weight"))
def test_refuses_units_that_no_weight_makes(method: str) -> None:
    case = mlp()
    lone = Group("lone", 6, (member("0.bias", 0, "other", "producer", 6),))
    with pytest.raises(ScoreError, match=f"`{method}` cannot score `lone`, which has no weights"):
        score(case.model, structure_of(case.model, [lone]), [case.batch()], lambda y, _: y.mean(), [method])
