"""CSV that a spreadsheet opens: exact numbers, and no text that it would run."""

from __future__ import annotations

import csv
import io

import pytest

from prunecli.report import LayerFacts, ModelFacts, compare, to_csv
from prunecli.report.spreadsheet import csv_text


@pytest.mark.parametrize("name", ("=cmd|' /C calc'!A0", "+1", "-x", "@SUM(A1)", "\t=1"))
def test_a_name_that_would_be_a_formula_becomes_a_text(name: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_text([(name,)])))
    assert cell == (name if name == "+1" else f"'{name}")  # +1 is a number


@pytest.mark.parametrize("value", (-3, -0.5, "-0.5", "1e-7", "layer1.0.conv1", 'a "b", c', "a\nb"))
def test_everything_else_stays_as_it_is(value: object) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_text([(value,)])))
    assert cell == str(value)


def test_a_carriage_return_ends_no_line() -> None:
    assert csv_text([("a\rb", "\r=1")]) == "a b, =1\n"


def test_control_characters_become_spaces() -> None:
    assert csv_text([("a\x1b[31mb", "\u202ec")]) == "a [31mb, c\n"


def test_nothing_is_an_empty_cell() -> None:
    assert csv_text([("a", None, 0)]) == "a,,0\n"


def test_a_report_of_a_hostile_layer_is_harmless() -> None:
    facts = ModelFacts((LayerFacts("=1+1,x", "Linear", 8, 72, 64),), 288)
    header, row = csv.reader(io.StringIO(to_csv(compare(facts, facts, title="net.pt"))))
    assert row[0] == "'=1+1,x"
    assert len(row) == len(header)
