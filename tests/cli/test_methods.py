"""`prunecli methods NAME` says everything that one needs to use a method."""

from __future__ import annotations

import json
import shlex

import pytest
import typer

from prunecli.cli.main import app, run
from prunecli.cli.methods import example
from prunecli.importance import build_methods, methods
from prunecli.importance.registry import MethodInfo
from prunecli.pipeline.scoring import split_argument

EVERY_METHOD = pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)


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
    assert (program, given["method"], given["keep"]) == ("prunecli", [method.name], "0.5")
    assert (given["data"] is not None) is method.needs_data
    assert list(build_methods([method.name], settings)) == [method.name]


def test_arguments_are_part_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "bn-scale-taylor", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["methods"]
    assert told["passes"] == "1"
    assert told["formula"].startswith("score = mean over t of (gamma * dE_t/dgamma)^2")
    assert [(one["name"], one["default"], one["expects"]) for one in told["arguments"]] == [
        ("bias", "false", "true or false"),
        ("missing_bn", "error", "error or gate"),
    ]
