"""A proof that fails says how far off the smaller model is, and with what weights."""

from __future__ import annotations

import pytest

from prunecli.budget import make_plan
from prunecli.errors import ProofError
from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.parity import verify
from prunecli.surgery import apply_plan
from tests.structures import conv_norm


@pytest.mark.parametrize(
    ("limit", "weights"),
    (
        ("NUMBERS_LIMIT", r"with random weights \(allowed 1e-09\)"),
        ("STRUCTURE_LIMIT", r"with the real weights changed at random \(allowed -1e\+00\)"),
    ),
)
def test_a_failure_names_the_weights_that_it_was_found_with(
    limit: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = conv_norm()
    args, _ = case.batch(2)
    structure = find_groups(case.model, (args[0][:1],))
    plan = make_plan(structure, score(case.model, structure, methods=["random"])["random"], budget="keep=0.5")
    pruned = apply_plan(case.model, structure, plan)
    assert verify(case.model, pruned, structure, plan, args).holds
    monkeypatch.setattr(f"prunecli.parity.{limit}", -1.0)  # which nothing meets
    with pytest.raises(ProofError, match=rf"relative error \S+ {weights}, \S+ with the real ones"):
        verify(case.model, pruned, structure, plan, args)
