from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.strict_json import FieldError, from_plain, to_plain


@dataclass(frozen=True)
class Leaf:
    count: int
    share: float
    name: str = ""


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, Leaf] = field(default_factory=dict)
    is_big: bool = False
    comment: str | None = None


LEAVES = st.builds(Leaf, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())
TREES = st.builds(
    Tree,
    st.lists(LEAVES).map(tuple),
    st.dictionaries(st.text(), LEAVES),
    st.booleans(),
    st.none() | st.text(),
)


@given(TREES)
def test_values_survive_the_round_trip(tree: Tree) -> None:
    assert from_plain(Tree, json.loads(json.dumps(to_plain(tree)))) == tree


def test_absent_fields_take_their_defaults() -> None:
    assert from_plain(Tree, {"leaves": []}) == Tree(())


def test_an_integer_is_a_number() -> None:
    share = from_plain(Leaf, {"count": 1, "share": 2}).share
    assert share == 2.0
    assert type(share) is float


@pytest.mark.parametrize(
    ("data", "message"),
    (
        ([], r"`\(top\)`: found \[\], expected an object"),
        ({}, "`leaves`: missing field"),
        ({"leaves": {}}, r"`leaves`: found \{\}, expected a list"),
        ({"leaves": [], "bird": 1}, "`bird`: unknown field, expected one of leaves, by_name"),
        ({"leaves": [{"count": "3", "share": 1.0}]}, r"`leaves\[0\].count`: found '3', expected an integer"),
        ({"leaves": [{"count": True, "share": 1.0}]}, r"`leaves\[0\].count`: found True"),
        ({"leaves": [], "by_name": {"a": 1}}, r"`by_name.a`: found 1, expected an object"),
        ({"leaves": [], "is_big": 1}, "`is_big`: found 1, expected true or false"),
        ({"leaves": [], "comment": 5}, "`comment`: found 5, expected a text"),
    ),
)
def test_what_does_not_fit_is_named(data: object, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        from_plain(Tree, data)
