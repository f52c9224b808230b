"""The table of methods, and how their arguments are read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import pytest

from prunecli.arguments import arguments_of, parse_arguments
from prunecli.errors import UsageError
from prunecli.importance.registry import (
    Granularity,
    MethodInfo,
    Needs,
    build_methods,
    find_method,
    method,
    methods,
)


class Average(str, Enum):
    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Toy:
    """Score for this test.

    score = draws / share, where both are
    what their names say.

    More about it.
    """

    draws: Annotated[int, "How many draws."] = 100
    share: Annotated[float, "Share of them that counts."] = 0.5
    signed: Annotated[bool, "Keep the sign."] = False
    average: Average = Average.AFTER


TOY = MethodInfo("toy", Needs.PARAMETERS, "nowhere", "K + 1", Granularity.UNIT, False, Toy)


def test_the_table_says_what_each_method_needs() -> None:
    table = {info.name: (info.needs.names, info.passes, info.granularity.value) for info in methods()}
    assert (
        table.items()
        >= {
            "bn-scale": (("parameters",), "0", "unit"),
            "bn-scale-taylor": (("labels", "gradients"), "1", "unit"),
            "fpgm": (("parameters",), "0", "unit"),
            "magnitude": (("parameters",), "0", "unit"),
            "magnitude-l1": (("parameters",), "0", "unit"),
            "network-slimming": (("parameters",), "0", "unit"),
            "random": (("parameters",), "0", "unit"),
            "taylor-fo": (("labels", "gradients"), "1", "unit"),
            "taylor-fo-weight": (("labels", "gradients"), "1", "unit"),
        }.items()
    )
    assert all(info.source and info.summary.endswith(".") for info in methods())
    assert find_method("taylor-fo").needs_data
    assert not find_method("magnitude").needs_data


@pytest.mark.parametrize("info", methods(), ids=lambda info: info.name)
def test_every_method_tells_its_formula_and_its_arguments(info: MethodInfo) -> None:
    assert info.formula
    for argument in info.arguments.values():
        assert argument.meaning.endswith("."), f"{argument.name}: write Annotated[..., what it means]"
        assert argument.default_text
        assert argument.expects


def test_the_docstring_tells_summary_and_formula() -> None:
    assert TOY.summary == "Score for this test."
    assert TOY.formula == "score = draws / share, where both are what their names say."
    assert TOY.paragraphs == (TOY.summary, TOY.formula, "More about it.")


def test_arguments_are_the_fields() -> None:
    told = {
        one.name: (one.default_text, one.expects, one.choices, one.meaning) for one in TOY.arguments.values()
    }
    assert told == {
        "draws": ("100", "a whole number", (), "How many draws."),
        "share": ("0.5", "a number", (), "Share of them that counts."),
        "signed": ("false", "true or false", ("true", "false"), "Keep the sign."),
        "average": ("after", "before or after", ("before", "after"), ""),
    }
    assert find_method("random").arguments == {}


def test_what_arguments_are_set_to_is_plain() -> None:
    set_to = arguments_of(Toy(draws=7, average=Average.BEFORE))  # type: ignore[arg-type]
    assert set_to == {"draws": 7, "share": 0.5, "signed": False, "average": "before"}
    assert type(set_to["average"]) is str
    assert arguments_of(find_method("random").make()) == {}


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no method `tailor-fo`. Did you mean `taylor-fo`"):
        find_method("tailor-fo")


def test_an_argument_that_no_method_takes_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"No argument `draws` in `random`, `magnitude`. They take none"):
        build_methods(["random", "magnitude"], {"draws": "3"})


def test_arguments_are_turned_into_their_types() -> None:
    text = {"draws": "7", "share": "0.25", "signed": "true", "average": "before", "of_another": "x"}
    assert Toy(**parse_arguments(TOY.name, TOY.arguments, text)) == Toy(7, 0.25, True, Average.BEFORE)
    assert Toy(**parse_arguments(TOY.name, TOY.arguments, {"draws": 7})) == Toy(7)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    (
        ("draws", "many", "a whole number"),
        ("share", "half", "a number"),
        ("signed", "1", "true or false"),
        ("average", "during", "before or after"),
    ),
)
def test_a_value_that_does_not_fit_is_refused(name: str, text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` of `toy` is {expected}, not `{text}`"):
        parse_arguments(TOY.name, TOY.arguments, {name: text})


def test_no_two_methods_share_a_name() -> None:
    with pytest.raises(ValueError, match="Two methods are called `random`"):
        method("random", needs=Needs.PARAMETERS, source="nowhere")(Toy)


@pytest.mark.parametrize(
    ("method", "argument", "value"),
    (
        ("fisher", "draws", "0"),
        ("fisher", "temperature", "nan"),
        ("taylor-so", "draws", "-1"),
        ("obd", "draws", "0"),
    ),
)
def test_values_that_make_no_sense_are_refused(method: str, argument: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"`{argument}` is a .*, not {value}"):
        build_methods([method], {argument: value})
