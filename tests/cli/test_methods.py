"""`prunecli methods NAME` says everything that one needs to use a method."""

from __future__ import annotations

import csv
import json
import re
import shlex

import pytest
import typer

from prunecli.cli.main import app, run
from prunecli.cli.methods import example
from prunecli.importance import Granularity, build_methods
from prunecli.importance.registry import MethodInfo
from prunecli.pipeline.methods import all_methods
from prunecli.pipeline.scoring import split_argument

EVERY_METHOD = pytest.mark.parametrize(
    "method", all_methods(), ids=lambda method: f"{method.name}-{method.granularity.value}"
)


@EVERY_METHOD
def test_formula_arguments_and_example_are_shown(
    method: MethodInfo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run(["methods", method.name]) == 0
    out = capsys.readouterr().out
    assert method.formula.startswith("score = ")
    lines = out.splitlines()
    assert method.formula in lines
    assert f"source    {method.source}" in lines
    assert f"example   {example(method)}" in lines
    for name, argument in method.arguments.items():
        assert argument.meaning
        assert f"argument  {name}: {argument.expects}, by default {argument.default_text}" in lines
        assert f"{'':<10}{argument.meaning}" in lines


@EVERY_METHOD
def test_the_example_is_a_command(method: MethodInfo) -> None:
    program, name, *arguments = shlex.split(example(method))
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, arguments).params
    settings = dict(split_argument(text, "--method-arg") for text in given["method_arg"])
    assert (program, *given["method"]) == ("prunecli", method.name)
    of_weights = method.granularity is Granularity.WEIGHT
    budget = ("weight", None, "32") if of_weights else ("unit", "0.5", None)
    assert (given["granularity"], given["keep"], given["ratio"]) == budget
    assert (given["data"] is not None) is method.needs_data
    assert list(build_methods([method.name], settings, method.granularity)) == [method.name]


def test_arguments_are_part_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "bn-scale-taylor", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["methods"]
    assert told["passes"] == "1"
    assert told["formula"].startswith("score = mean over t of (gamma * dE_t/dgamma)^2")
    assert [(one["name"], one["default"], one["expects"]) for one in told["arguments"]] == [
        ("bias", "false", "true or false"),
        ("missing_bn", "error", "error or gate"),
    ]


def names(granularity: Granularity) -> list[str]:
    return [info.name for info in all_methods() if info.granularity is granularity]


def test_units_and_weights_have_a_heading_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run(["methods"]) == 0
    units, weights = capsys.readouterr().out.split("\nMethods for weights (--granularity weight)\n")
    assert units.startswith("Methods for units\n")
    assert re.findall(r"^([a-z0-9-]+) ", units.partition("\n\n")[2], re.MULTILINE) == names(Granularity.UNIT)
    assert re.findall(r"^([a-z0-9-]+) ", weights, re.MULTILINE) == names(Granularity.WEIGHT)
    assert {"magnitude", "snip"} <= set(names(Granularity.WEIGHT))


@pytest.mark.parametrize("style", ("csv", "json"))
def test_programs_read_the_granularity_in_a_field(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--format", style]) == 0
    text = capsys.readouterr().out
    rows = json.loads(text)["methods"] if style == "json" else list(csv.DictReader(text.splitlines()))
    found = [(row["name" if style == "json" else "method"], row["granularity"]) for row in rows]
    assert found == [(info.name, info.granularity.value) for info in all_methods()]


def test_markdown_has_two_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert text.count("| method | needs |") == 2
    assert text.index("### Methods for units") < text.index("### Methods for weights")


def test_a_name_in_both_tables_is_explained_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "magnitude"]) == 0
    units, weights = capsys.readouterr().out.split("\nmagnitude (--granularity weight)\n")
    assert units.startswith("magnitude (--granularity unit)\n")
    assert "prunecli prune model.pt --method magnitude --keep 0.5" in units
    example = "prunecli prune model.pt --granularity weight --method magnitude --ratio 32"
    assert example in " ".join(weights.split())


def test_an_unknown_name_gets_the_nearest_of_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "sinp"]) == 2
    assert "There is no method `sinp`. Did you mean `snip`?" in capsys.readouterr().err
