"""All commands -> the pages of docs/commands.md, so that the manual says what the program does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunecli.cli.described import Parameter, examples, one_line, sections, usage

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "a bug in prunecli, or a full memory; under torchrun, also that another process failed",
    2: "options that are wrong or contradict each other",
    3: "a check that was asked for did not hold",
    4: "a bad, unsafe or mismatched checkpoint, spec, data or plan, or a file that cannot be written",
    5: "the model cannot be pruned as asked",
    6: "the proof failed: nothing was written",
    129: "ended because its terminal is gone (SIGHUP); as with 130",
    130: "interrupted (Ctrl-C): every file is whole or absent, and `--resume` goes on with a training run",
    143: "asked to end by another program (SIGTERM); as with 130",
}
_OPENING = """# Commands

What every command is for, every option with its default, and two examples of each. This page is made of what
`prunecli COMMAND --help` shows, by `pytest tests/test_docs.py --overwrite`; what options do together is told
in [the other pages](README.md)."""


def manual(group: Any, context: Any) -> str:
    """Return the manual as Markdown.

    Args:
        group: all commands.
        context: that of the group.
    """
    names = group.list_commands(context)
    listed = "\n".join(
        f"| [`prunecli {name}`](#prunecli-{name}) | {_purpose(group.get_command(context, name))} |"
        for name in names
    )
    pages = (_page(group.get_command(context, name), context, name) for name in names)
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts = (
        _OPENING,
        f"| command | does |\n|---|---|\n{listed}",
        *pages,
        f"## Exit codes\n\n| exit code | means |\n|---:|---|\n{codes}",
    )
    return "\n\n".join(parts) + "\n"


def _page(command: Any, parent: Any, name: str) -> str:
    context = type(parent)(command, info_name=name, parent=parent)
    shown = "\n".join(examples(command))
    tables = "\n\n".join(
        "\n".join(_table(each.title, each.parameters)) for each in sections(command, context)
    )
    return (
        f"## prunecli {name}\n\n{one_line(command.help or '')}\n\n    prunecli {name} {usage(command)}\n\n"
        f"```sh\n{shown}\n```\n\n{tables}"
    )


def _purpose(command: Any) -> str:
    return one_line(command.help or "").rstrip(".").replace("|", "\\|")


def _table(title: str, parameters: tuple[Parameter, ...]) -> Iterator[str]:
    yield f"| {title.lower()} | default | |"
    yield "|---|---|---|"
    for parameter in parameters:
        default = f"`{parameter.default}`" if parameter.default else ""
        yield f"| {_code(parameter)} | {default} | {parameter.text.replace('|', chr(92) + '|')} |"


def _code(parameter: Parameter) -> str:
    *others, last = parameter.names
    value = f" {parameter.value}" if parameter.value else ""
    names = ", ".join(f"`{name}`" for name in (*others, f"{last}{value}"))
    return names.replace("|", "\\|")
