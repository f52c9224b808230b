"""`prunecli methods`: what importance can be measured by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.arguments import another_value, as_plain, explained, with_defaults
from prunecli.cli.options import Style, with_options
from prunecli.cli.streams import write_result

if TYPE_CHECKING:
    from prunecli.importance.registry import MethodInfo

NAME = "methods"
EXAMPLES = """Examples:
  prunecli methods
  prunecli methods taylor-fo"""

MethodName = Annotated[
    str | None, typer.Argument(help="Say everything about one method.", metavar="[NAME]", show_default=False)
]


@with_options
def command(style: Style, name: MethodName = None) -> None:
    """List the importance methods: what each needs, and where it comes from."""
    from prunecli.pipeline.methods import all_methods, one_method

    if name is None:
        write_result(render(all_methods(), style))
    else:
        write_result(render_one(one_method(name), style))


def render(methods: tuple[MethodInfo, ...], style: Style) -> str:
    """Return the list in the form asked for."""
    from prunecli.cli.tables import Table, to_csv, to_markdown, to_terminal

    columns = ("method", "needs", "passes", "arguments", "summary", "source")
    rows = tuple(
        (
            method.name,
            ", ".join(method.needs.names),
            method.passes,
            ", ".join(with_defaults(method.arguments.values())),
            method.summary,
            method.source,
        )
        for method in methods
    )
    table = Table("Methods", columns, rows)
    match style.style:
        case "json":
            return json.dumps({"version": 1, "methods": [_plain(method) for method in methods]}, indent=2)
        case "csv":
            return to_csv(table)
        case "md":
            return to_markdown([table])
        case "table":
            return to_terminal((), closing=[line for method in methods for line in _in_words(method)])


def render_one(method: MethodInfo, style: Style) -> str:
    """Return everything about one method."""
    from prunecli.cli.tables import to_terminal

    if style.style != "table":
        return render((method,), style)
    passes = (
        f"{method.passes} forward and backward over the sample" if method.needs_data else "no sample is read"
    )
    lines = (
        *(line for paragraph in method.paragraphs for line in (paragraph, "")),
        f"needs     {', '.join(method.needs.names)}",
        f"passes    {passes}",
        f"source    {method.source}",
        *explained(method.arguments.values()),
        "",
        f"example   {example(method)}",
    )
    return to_terminal((), method.name, lines)


def example(method: MethodInfo) -> str:
    """Return a command that uses the method, and its first argument if it takes any."""
    data = " --data npz:train.npz[:1024]" if method.needs_data else ""
    argument = next(iter(method.arguments.values()), None)
    setting = f" --method-arg {argument.name}={another_value(argument)}" if argument else ""
    return f"prunecli prune model.pt --method {method.name}{setting}{data} --keep 0.5"


def _in_words(method: MethodInfo) -> tuple[str, str]:
    """Return two lines: what it scores; what it needs and where it comes from."""
    passes = f"{method.passes} pass{'es' * (method.passes != '1')}"
    facts = (
        f"needs {', '.join(method.needs.names)}",
        passes,
        *with_defaults(method.arguments.values()),
        method.source,
    )
    return f"{method.name:<22}{method.summary}", f"{'':<22}{'; '.join(facts)}"


def _plain(method: MethodInfo) -> dict[str, object]:
    return {
        "name": method.name,
        "summary": method.summary,
        "formula": method.formula,
        "needs": list(method.needs.names),
        "passes": method.passes,
        "granularity": method.granularity.value,
        "arguments": as_plain(method.arguments.values()),
        "source": method.source,
    }
