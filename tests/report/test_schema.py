"""The JSON schemas in docs/: they are what the code writes, and what it writes holds to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunecli.report import Report
from prunecli.report.schema import json_schema
from prunecli.report.sweep import SWEEP_VERSION, SweepReport, SweepRow, TrialFigures
from prunecli.report.values import REPORT_VERSION, Change

from .full_report import full_report

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

DOCS = Path(__file__).parents[2] / "docs"
SCHEMAS = {
    "report.schema.json": json_schema(Report, REPORT_VERSION, "A report of prunecli"),
    "sweep.schema.json": json_schema(SweepReport, SWEEP_VERSION, "A sweep of prunecli"),
}
# What follows from the rows is written for other programs, and not read.
SCHEMAS["sweep.schema.json"]["properties"]["summary"] = {"type": "array"}


def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads((DOCS / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_documented_schema_is_that_of_the_code(name: str, request: pytest.FixtureRequest) -> None:
    text = json.dumps(SCHEMAS[name], indent=2) + "\n"
    if request.config.getoption("--overwrite"):
        (DOCS / name).write_text(text, encoding="utf-8")
    assert (DOCS / name).read_text(encoding="utf-8") == text
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


def test_a_full_report_holds_to_the_schema() -> None:
    data = json.loads(full_report().to_json())
    validator("report.schema.json").validate(data)
    missing = [name for name, value in data.items() if value in (None, [], {})]
    assert missing == [], "the builder of the full report leaves fields empty"


def test_a_bare_report_holds_to_it_too() -> None:
    full = full_report()
    bare = Report(title=full.title, layers=full.layers, totals=full.totals)
    validator("report.schema.json").validate(json.loads(bare.to_json()))


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"title": 3}, "is not of type 'string'"),
        ({"surplus": 1}, "'surplus' was unexpected"),
        ({"version": REPORT_VERSION + 1}, "greater than the maximum"),
    ),
)
def test_what_the_reader_refuses_the_schema_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=message):
        validator("report.schema.json").validate(json.loads(full_report().to_json()) | change)


def test_a_sweep_holds_to_its_schema() -> None:
    figures = TrialFigures(Change(10, 5), Change(20, 10), Change(8, 3), 2.0, samples=4, top1=0.5)
    row = SweepRow("snip", "global", "ratio=2", 2.0, 0, figures)
    sweep = SweepReport("net.pt", "weight", (row, replace(row, figures=None, error="out of memory")))
    validator("sweep.schema.json").validate(json.loads(sweep.to_json()))
