"""Pages name every command, option, method and schedule, and nothing that does not exist; it all holds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from prunecli.cli.described import examples
from prunecli.cli.main import app
from prunecli.cli.manual import EXIT_CODES, manual
from prunecli.errors import PruneError
from prunecli.importance import Granularity
from prunecli.importance.registry import MethodInfo
from prunecli.pipeline.methods import all_methods
from prunecli.pipeline.schedules import all_schedules
from prunecli.spec import read_spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PATHS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
MANUAL = "docs/commands.md"
WRITTEN_BY_HAND = "\n".join(text for name, text in PAGES.items() if name != MANUAL)
GROUP: Any = typer.main.get_command(app)
COMMANDS = GROUP.commands
FOREIGN = {"--index-url", "--nproc-per-node", "--data-dir"}
"""Options of other programs, which pages may name."""


def options(command: Any) -> set[str]:
    """Return the long names of a command's options."""
    names = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
    return {name for name in names if name.startswith("--")}


def named_options(text: str) -> set[str]:
    """Return everything in a text that looks like a long option."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


def fenced(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> str:
    """Return what stands under a heading of a page, up to the next one."""
    (text,) = re.findall(rf"^{re.escape(title)}\n(.*?)(?=^#|\Z)", PAGES[page], re.MULTILINE | re.DOTALL)
    return str(text)


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of every `prunecli` command among the lines of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        tokens = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
        tokens.whitespace_split = True
        words = [word for word in tokens if not re.match(r"[A-Z_]+=", word)]
        if words[:1] == ["prunecli"]:
            end = next((i for i, word in enumerate(words) if set(word) <= set("|&;>")), len(words))
            yield words[1:end]


COMMANDS_SHOWN = [
    (page, words) for page in PAGES for block in fenced(PAGES[page], "sh") for words in commands_in(block)
]


def test_the_manual_is_that_of_the_commands(request: pytest.FixtureRequest) -> None:
    text = manual(GROUP, GROUP.make_context("prunecli", ["doctor"]))
    path = ROOT / MANUAL
    if request.config.getoption("--overwrite"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", COMMANDS)
def test_readme_names_every_command(name: str) -> None:
    assert f"`prunecli {name}" in README


@pytest.mark.parametrize("name", COMMANDS)
def test_pages_name_every_option(name: str) -> None:
    assert options(COMMANDS[name]) - {"--help"} <= named_options(WRITTEN_BY_HAND)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_option_that_is_not_there(page: str) -> None:
    there = set().union(*map(options, COMMANDS.values())) | options(GROUP) | {"--help", "--overwrite"}
    assert named_options(PAGES[page]) - FOREIGN <= there


@pytest.mark.parametrize(
    "method", all_methods(), ids=lambda method: f"{method.name}-{method.granularity.value}"
)
def test_pages_name_every_method(method: MethodInfo) -> None:
    of_weights = method.granularity is Granularity.WEIGHT
    title = "## Methods for weights" if of_weights else "## Methods for units"
    assert f"| `{method.name}`" in section("docs/methods.md", title)


@pytest.mark.parametrize("name", [each.name for each in all_schedules()])
def test_pages_name_every_schedule(name: str) -> None:
    assert f"| `{name}`" in section("docs/training.md", "## Schedules")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", PAGES[page]):
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], f"{target}#{anchor}"


def slug(heading: str) -> str:
    """Return how a heading is linked to."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_page_is_listed() -> None:
    listed = PAGES["docs/README.md"]
    assert not [
        name for name in PAGES if name not in ("README.md", "docs/README.md") and name[5:] not in listed
    ]


def test_the_spec_in_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = fenced(README, "toml")
    path = tmp_path / "resnet20.toml"
    path.write_text(text, encoding="utf-8")
    spec = read_spec(path)
    assert spec.factory == "resnet.py:resnet20"
    assert spec.inputs[0].shape == (3, 32, 32)


@pytest.mark.parametrize("page", PAGES)
def test_specs_in_pages_are_such(page: str, tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    (tmp_path / "bert-folder").mkdir()
    (tmp_path / "bert-folder" / "config.json").write_text(
        '{"architectures": ["BertModel"]}', encoding="utf-8"
    )
    for text in fenced(PAGES[page], "toml"):
        path.write_text(text, encoding="utf-8")
        assert read_spec(path).factory


@pytest.mark.parametrize("page", PAGES)
def test_code_in_pages_compiles(page: str) -> None:
    for text in fenced(PAGES[page], "python"):
        assert compile(text, page, "exec")


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS_SHOWN, ids=[f"{page}-{i}" for i, (page, _) in enumerate(COMMANDS_SHOWN)]
)
def test_commands_in_pages_are_understood(page: str, words: list[str]) -> None:
    name, *arguments = words
    assert COMMANDS[name].make_context(name, arguments).params


def test_pages_show_commands() -> None:
    assert len(COMMANDS_SHOWN) > 40
    assert list(commands_in("A=1 prunecli a 'b c' --d=e | f\nprunecli g > h &\n")) == [
        ["a", "b c", "--d=e"],
        ["g"],
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_purpose_and_two_examples(name: str) -> None:
    command = COMMANDS[name]
    assert re.match(r"[A-Z].+\.", command.help)
    assert len(examples(command)) == 2
    for example in examples(command):
        ((first, *arguments),) = commands_in(example)
        assert first == name
        assert command.make_context(name, arguments).params


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    assert not [item.name for item in COMMANDS[name].params if not item.help]


def test_exit_codes_are_those_of_the_errors() -> None:
    stated = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGES[MANUAL], re.MULTILINE)}

    def codes(kind: type[PruneError]) -> set[int]:
        return {kind.exit_code}.union(*map(codes, kind.__subclasses__()))

    assert stated == set(EXIT_CODES) == codes(PruneError) | {0, 129, 130, 143}
