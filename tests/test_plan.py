"""A plan survives its file; what is not one, or is one for another network, is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.errors import InputError
from prunecli.plan import Constraints, Plan, Rank, Scope
from tests.structures import mlp

PLAN = Plan(
    keep={"0": (0, 2, 5), "2": (4,)},
    widths={"0": 6, "2": 5},
    method="taylor-fo",
    scope=Scope.LAYER,
    rank=Rank.SCORE_PER_COST,
    budget="macs=0.5",
    constraints=Constraints(0.1, 8, ("head", "in*"), {"out": 0.8, "in": 3}),
    seed=7,
    digests={"checkpoint": "abc"},
)


def test_text_has_one_line_per_group() -> None:
    text = PLAN.to_json()
    assert Plan.from_json(text) == PLAN
    assert Plan.from_json(text).to_json() == text
    assert '    "0": {"width": 6, "keep": [0, 2, 5]},\n    "2": {"width": 5, "keep": [4]}\n' in text


def kept_of(width: int) -> st.SearchStrategy[tuple[int, set[int]]]:
    return st.tuples(st.just(width), st.sets(st.integers(0, width - 1), min_size=1))


@given(
    groups=st.dictionaries(st.text(min_size=1), st.integers(1, 9).flatmap(kept_of)),
    scope=st.sampled_from(Scope),
    rank=st.sampled_from(Rank),
    seed=st.integers(-(2**63), 2**64 - 1),
    words=st.text(),
)
def test_round_trip(
    groups: dict[str, tuple[int, set[int]]], scope: Scope, rank: Rank, seed: int, words: str
) -> None:
    plan = Plan(
        keep={name: tuple(sorted(units)) for name, (_, units) in groups.items()},
        widths={name: width for name, (width, _) in groups.items()},
        method=words,
        scope=scope,
        rank=rank,
        budget=words,
        constraints=Constraints(ignore=(words,), keep_layer={words: 0.5}),
        seed=seed,
        digests={words: words},
    )
    assert Plan.from_json(plan.to_json()) == plan


def test_masks_and_counts() -> None:
    kept = PLAN.kept()
    assert kept["0"].tolist() == [True, False, True, False, False, True]
    assert kept["2"].tolist() == [False, False, False, False, True]
    assert (PLAN.kept_count, PLAN.unit_count) == (4, 11)


def edited(**changes: object) -> str:
    return json.dumps({**json.loads(PLAN.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("", "`p.json` is no JSON"),
        ("[]", "this is no plan"),
        (edited(format="other"), 'this is no plan: `format` is not "prunecli.plan"'),
        (edited(version=2), "`version`: found 2, this prunecli reads 1"),
        (edited(method=None), "`method`: found None, expected a text"),
        (edited(scope="local"), "`scope`: found 'local', expected global or layer"),
        (edited(rank="best"), "`rank`: found 'best', expected score or score-per-cost"),
        (edited(extra=1), "`extra`: unknown field"),
        (
            edited(constraints={"min_keep": "1"}),
            "`constraints.min_keep`: found '1', expected an integer or",
        ),
        (edited(groups={"a": {"width": 3, "keep": []}}), "`groups.a.keep`: it is empty"),
        (edited(groups={"a": {"width": 0, "keep": []}}), "`groups.a.width`: found 0, expected at least 1"),
        (
            edited(groups={"a": {"width": 3, "keep": [0, 3]}}),
            "`groups.a.keep`: found unit 3, expected 0 to",
        ),
        (edited(groups={"a": {"width": 3, "keep": [-1]}}), "found unit -1"),
        (edited(groups={"a": {"width": 3, "keep": [1, 0]}}), "0 follows 1, expected ascending, each once"),
        (edited(groups={"a": {"width": 3, "keep": [1, 1]}}), "1 follows 1"),
        (
            edited(groups={"a": {"width": 3, "keep": [True]}}),
            r"`groups.a.keep\[0\]`: found True, expected",
        ),
        (edited(groups={"a": {"keep": [1]}}), "`groups.a.width`: missing field"),
        (PLAN.to_json().replace('"2": {', '"0": {'), "`0` comes twice"),
    ),
)
def test_refuses_what_is_no_plan(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Plan.from_json(text, "p.json")
    assert "`p.json`" in str(caught.value)


def test_fits_its_own_network_only() -> None:
    structure = mlp().structure
    PLAN.check(structure)
    with pytest.raises(InputError, match="cuts `9`, and the model has no such group"):
        replace(PLAN, widths={**PLAN.widths, "9": 1}).check(structure)
    with pytest.raises(InputError, match="is for 7 units in `0`, not 6. It was made for another network"):
        replace(PLAN, widths={**PLAN.widths, "0": 7}).check(structure)
    with pytest.raises(InputError, match=r"says nothing of `2` \(5 units\)"):
        replace(PLAN, widths={"0": 6}).check(structure)
