"""Constraints become allowed widths per group; patterns must mean something."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunecli.budget.limits import Limit, allowed_widths, find_limits, names_of
from prunecli.errors import UsageError
from prunecli.graph.structure import FrozenAxis
from prunecli.plan import Constraints
from tests.structures import residual


@pytest.mark.parametrize(
    ("width", "constraints", "allowed"),
    (
        (4, Constraints(), (4, 3, 2, 1)),
        (1, Constraints(), (1,)),
        (4, Constraints(min_keep=3), (4, 3)),
        (4, Constraints(min_keep=9), (4,)),
        (30, Constraints(min_keep=0.9), (30, 29, 28, 27)),
        (24, Constraints(round_to=8), (24, 16, 8)),
        (20, Constraints(round_to=8), (20, 16, 8)),
        (20, Constraints(round_to=8, min_keep=0.5), (20, 16)),
        (5, Constraints(round_to=8), (5,)),
    ),
)
def test_allowed_widths(width: int, constraints: Constraints, allowed: tuple[int, ...]) -> None:
    assert allowed_widths(width, constraints) == allowed


def test_patterns_settle_the_groups_that_layers_produce() -> None:
    structure = residual().structure
    constraints = Constraints(ignore=("in1",), keep_layer={"out2_nor?": 0.5, "in2.weight": 1})
    limits = find_limits(structure, constraints)
    assert limits == {
        "stem": Limit((3,), settled=True),  # out2 produces the stage
        "in1": Limit((5,), settled=True),
        "in2": Limit((1,), settled=True),
    }


def test_a_layer_that_only_reads_units_does_not_settle_them() -> None:
    structure = residual().structure
    assert "head" not in names_of(structure.by_name["stem"], structure.aliases)
    assert {"stem", "out1", "out1.weight", "out2_norm"} <= names_of(structure.by_name["stem"], {})


def test_kept_widths_are_rounded_up_to_allowed_ones() -> None:
    limits = find_limits(residual().structure, Constraints(round_to=2, keep_layer={"*": 0.5}))
    assert {name: limit.allowed for name, limit in limits.items()} == {"stem": (4,), "in1": (4,), "in2": (2,)}


@pytest.mark.parametrize(
    ("constraints", "message"),
    (
        (Constraints(ignore=("steem",)), "`--ignore steem` matches no layer .* Did you mean `stem`"),
        (Constraints(keep_layer={"head": 0.5}), "`--keep-layer head` matches no layer"),
        (Constraints(ignore=("xyzzy",)), "`prunecli inspect` lists them"),
        (
            Constraints(keep_layer={"out1": 0.5, "out2": 0.4}),
            "out1` and `--keep-layer out2` contradict",
        ),
        (Constraints(ignore=("stem",), keep_layer={"stem": 0.5}), "both match `stem`"),
        (Constraints(min_keep=0), "`--min-keep`: 0 is neither units"),
        (Constraints(min_keep=1.5), "`--min-keep`: 1.5 is neither"),
        (Constraints(keep_layer={"stem": 0.0}), "`--keep-layer stem`: 0.0 is neither"),
        (Constraints(round_to=0), "`--round-to 0`: expected a whole number"),
    ),
)
def test_refuses_what_makes_no_sense(constraints: Constraints, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_limits(residual().structure, constraints)


def test_what_cannot_be_cut_may_be_ignored_but_not_kept_in_part() -> None:
    frozen = FrozenAxis("head", 3, "outputs of the network", "", "output", ("head.weight", "head.bias"))
    structure = replace(residual().structure, frozen=(frozen,))
    assert not any(limit.settled for limit in find_limits(structure, Constraints(ignore=("head",))).values())
    with pytest.raises(UsageError, match="matches no layer whose units can go"):
        find_limits(structure, Constraints(keep_layer={"head": 0.5}))
