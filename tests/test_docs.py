"""The README names every command, option and method, and nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from prunecli.cli.main import app
from prunecli.errors import PruneError
from prunecli.importance import Granularity
from prunecli.importance.registry import MethodInfo
from prunecli.pipeline.methods import all_methods
from prunecli.spec import read_spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]


def options(command: object) -> set[str]:
    """Return the long names of a command's options."""
    names = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}  # type: ignore[attr-defined]
    return {name for name in names if name.startswith("--")}


def examples(command: object) -> list[str]:
    """Return the command lines in a command's help."""
    return [line.strip() for line in command.epilog.splitlines() if line.strip().startswith("prunecli ")]  # type: ignore[attr-defined]


def named_options(text: str) -> set[str]:
    """Return everything in a text that looks like a long option."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.mark.parametrize("name", COMMANDS)
def test_readme_names_every_command(name: str) -> None:
    assert f"`prunecli {name}" in README


@pytest.mark.parametrize("name", COMMANDS)
def test_readme_names_every_option(name: str) -> None:
    assert options(COMMANDS[name]) - {"--help"} <= named_options(README)


def test_readme_names_no_option_that_is_not_there() -> None:
    there = set().union(*map(options, COMMANDS.values())) | options(GROUP) | {"--help"}
    assert named_options(README) <= there


def section(title: str) -> str:
    """Return what stands under a heading of the README, up to the next one."""
    (text,) = re.findall(rf"^{re.escape(title)}\n(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.mark.parametrize(
    "method", all_methods(), ids=lambda method: f"{method.name}-{method.granularity.value}"
)
def test_readme_names_every_method(method: MethodInfo) -> None:
    of_weights = method.granularity is Granularity.WEIGHT
    assert f"| `{method.name}`" in section("### Methods for weights" if of_weights else "### Methods")


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_spec_in_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "resnet20.toml"
    path.write_text(text, encoding="utf-8")
    spec = read_spec(path)
    assert spec.factory == "resnet.py:resnet20"
    assert spec.inputs[0].shape == (3, 32, 32)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_purpose_and_two_examples(name: str) -> None:
    command = COMMANDS[name]
    assert re.match(r"[A-Z].+\.", command.help)
    assert len(examples(command)) == 2
    for example in examples(command):
        assert example.split()[1] == name
        assert named_options(example) <= options(command)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    assert not [item.name for item in COMMANDS[name].params if not item.help]


def test_exit_codes_in_the_readme_are_those_of_the_errors() -> None:
    stated = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}

    def codes(kind: type[PruneError]) -> set[int]:
        return {kind.exit_code}.union(*map(codes, kind.__subclasses__()))

    assert stated == codes(PruneError) | {0, 130}
