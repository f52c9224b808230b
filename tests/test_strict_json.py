from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.strict_json import FieldError, JsonError, from_plain, parse_json, to_plain


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


LEAVES = st.builds(Leaf, st.integers(-(2**63), 2**63 - 1), st.floats(-1e99, 1e99), st.text())
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
        ({"leaves": [{"count": 2**64, "share": 1.0}]}, "expected a number of 64 bits"),
        ({"leaves": [{"count": 1, "share": 10**400}]}, "`leaves.0..share`: found 10.*a number of 64 bits"),
    ),
)
def test_what_does_not_fit_is_named(data: object, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        from_plain(Tree, data)


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("{", "Expecting property name"),
        (b"\xff{}", "can't decode byte 0xff"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ('{"a": {"b": 1, "b": 2}}', "`b` comes twice"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("[" * 66 + "]" * 66, "nested deeper than 64 levels"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("9" * 5000, "Exceeds the limit"),
    ),
)
def test_json_of_an_unknown_hand_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(JsonError, match=message):
        parse_json(text)


def test_what_json_may_hold_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\\ud83d\\ude00", null]}') == {"a": [1, 2.5, "\U0001f600", None]}
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json("[Infinity]", finite=False) == [float("inf")]
