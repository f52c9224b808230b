"""`bn-scale` and `network-slimming` against a twin, and what they refuse."""

from __future__ import annotations

import pytest

from prunecli.errors import ScoreError
from prunecli.importance import score
from tests.structures import mlp, residual

BOTH = pytest.mark.parametrize("method", ("bn-scale", "network-slimming"))


@BOTH
def test_adds_up_the_scales_of_all_producers(method: str) -> None:
    case = residual()
    case.model.out1_norm.weight.data[1] *= -1  # its size counts, not its sign
    found = score(case.model, case.structure, methods=[method])[method].by_group
    norms = [case.model.get_submodule(f"{name}_norm") for name in ("stem", "out1", "out2")]
    expected = [sum(float(norm.weight.detach()[unit].abs()) for norm in norms) for unit in range(6)]
    assert found["stem"].tolist() == pytest.approx(expected, rel=1e-12)
    assert found["in1"].tolist() == case.model.in1_norm.weight.abs().tolist()


@BOTH
def test_refuses_units_without_normalisation_by_name(method: str) -> None:
    case = mlp()
    message = rf"`{method}` cannot score `0`, which has no normalisation.*\(and 1 more: `2`\)"
    with pytest.raises(ScoreError, match=message):
        score(case.model, case.structure, methods=[method])
