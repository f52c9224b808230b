"""Help: nothing is cut at any width, examples stand where they are seen, colours can be read anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import typer

from prunecli.cli.described import examples, sections, usage
from prunecli.cli.help import columns, help_lines, written
from prunecli.cli.main import app, run

GROUP: Any = typer.main.get_command(app)
COMMANDS = GROUP.commands


def help_of(name: str, width: int, in_colour: bool = False) -> str:
    """Return the help of a command, laid out for a terminal of that width."""
    command = COMMANDS[name]
    context = GROUP.make_context("prunecli", ["doctor"])
    own = type(context)(command, info_name=name, parent=context)
    return written(help_lines(command, own, width), in_colour)


@pytest.mark.parametrize("width", (80, 100))
def test_help(width: int, golden: Callable[[str, str], None]) -> None:
    golden(f"help-schedules-{width}.txt", help_of("schedules", width))


@pytest.mark.parametrize("width", (80, 100))
@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_is_cut_and_no_line_is_too_wide(name: str, width: int) -> None:
    text = help_of(name, width)
    assert max(map(len, text.splitlines())) <= width
    for option in COMMANDS[name].params:
        for each in (*option.opts, *option.secondary_opts):
            assert not each.startswith("-") or re.search(rf"(?<![\w-]){each}(?![\w-])", text)
    assert "…" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_pasted_whole(name: str) -> None:
    pasted = " ".join(help_of(name, 80).replace("\\\n", " ").split())
    assert len(examples(COMMANDS[name])) == 2
    assert all(" ".join(example.split()) in pasted for example in examples(COMMANDS[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_under_a_heading_once(name: str) -> None:
    context = GROUP.make_context("prunecli", ["doctor"])
    found = [one for each in sections(COMMANDS[name], context) for one in each.parameters]
    assert len(found) == len(COMMANDS[name].get_params(context))
    assert len({one.names for one in found}) == len(found)


def test_usage_puts_in_brackets_what_may_be_left_out() -> None:
    assert usage(COMMANDS["inspect"]) == "[OPTIONS] CKPT"
    assert usage(COMMANDS["methods"]) == "[OPTIONS] [NAME]"


def test_defaults_are_said_as_they_would_be_typed() -> None:
    context = GROUP.make_context("prunecli", ["doctor"])
    found = {one.names[-1]: one for each in sections(COMMANDS["prune"], context) for one in each.parameters}
    assert found["--no-verify"].default == "--verify"
    assert found["--no-reconstruct"].default == "--no-reconstruct"
    assert found["--method"].default == "taylor-fo"
    assert found["--device"].default == "auto"
    assert (found["--force"].default, found["--spec"].default, found["--ignore"].default) == ("", "", "")
    assert found["--quiet"].written == "-q, --quiet"
    assert found["--keep"].written == "--keep SHARE"


def test_colours_can_be_read_on_dark_and_on_light_terminals() -> None:
    codes = set(re.findall(r"\x1b\[([\d;]+)m", help_of("prune", 80, in_colour=True)))
    assert codes == {"0", "1", "1;35"}  # bold, and bold magenta
    assert "\x1b" not in help_of("prune", 80)


@pytest.mark.parametrize(
    ("environment", "coloured"), (({}, False), ({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1"}, False))
)
def test_colour_follows_the_environment(
    environment: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(["methods", "--help"]) == 0
    assert ("\x1b[1m" in capsys.readouterr().out) is coloured


@pytest.mark.parametrize(
    ("asked", "width"), (("90", 90), ("300", 100), ("5", 40), ("x", 80), ("²", 80), ("", 80))
)
def test_width_of_help(
    asked: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", asked)
    assert columns() == width


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +[A-Z]", text, re.MULTILINE) for name in COMMANDS)
    assert "--install-completion" in text
    assert max(map(len, text.splitlines())) <= 80


def test_no_arguments_at_all_are_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("Usage: prunecli COMMAND [OPTIONS]")
    assert "error" not in err
