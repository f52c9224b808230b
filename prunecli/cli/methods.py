"""`prunecli methods`: what importance can be measured by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.arguments import another_value, as_plain, explained, with_defaults
from prunecli.cli.completion import method_names
from prunecli.cli.options import Style, with_options
from prunecli.cli.streams import write_result

if TYPE_CHECKING:
    from prunecli.cli.tables import Table
    from prunecli.importance.registry import MethodInfo

NAME = "methods"
EXAMPLES = """Examples:
  prunecli methods
  prunecli methods taylor-fo"""

_HEADINGS = {"unit": "Methods for units", "weight": "Methods for weights (--granularity weight)"}

MethodName = Annotated[
    str | None,
    typer.Argument(
        help="Say everything about one method.",
        metavar="[NAME]",
        show_default=False,
        autocompletion=method_names,
    ),
]


@with_options
def command(style: Style, name: MethodName = None) -> None:
    """List the importance methods, for units and for weights: what each needs, and where it comes from."""
    from prunecli.pipeline.methods import all_methods, methods_called

    if name is None:
        write_result(render(all_methods(), style))
    else:
        write_result(render_some(methods_called(name), style))


def render(methods: tuple[MethodInfo, ...], style: Style) -> str:
    """Return the list in the form asked for."""
    from prunecli.cli.tables import to_csv, to_markdown, to_terminal

    tables = {each: [one for one in methods if one.granularity.value == each] for each in _HEADINGS}
    match style.style:
        case "json":
            return json.dumps({"version": 1, "methods": [_plain(method) for method in methods]}, indent=2)
        case "csv":
            return to_csv(_table("Methods", methods))
        case "md":
            return to_markdown([_table(_HEADINGS[each], found) for each, found in tables.items()])
        case "table":
            blocks = [
                to_terminal((), _HEADINGS[each], [line for method in found for line in _in_words(method)])
                for each, found in tables.items()
            ]
            return "\n".join(blocks)


def render_some(methods: tuple[MethodInfo, ...], style: Style) -> str:
    """Return everything about one method, or about two of one name."""
    if style.style != "table":
        return render(methods, style)
    return "\n".join(_in_full(method, titled=len(methods) > 1) for method in methods)


def example(method: MethodInfo) -> str:
    """Return a command that uses the method, and its first argument if it takes any."""
    weights = method.granularity.value == "weight"
    kind, budget = (" --granularity weight", "--ratio 32") if weights else ("", "--keep 0.5")
    data = " --data npz:train.npz[:1024]" if method.needs_data else ""
    argument = next(iter(method.arguments.values()), None)
    setting = f" --method-arg {argument.name}={another_value(argument)}" if argument else ""
    return f"prunecli prune model.pt{kind} --method {method.name}{setting}{data} {budget}"


def _table(title: str, methods: Sequence[MethodInfo]) -> Table:
    from prunecli.cli.tables import Table

    rows = tuple(
        (
            method.name,
            ", ".join(method.needs.names),
            method.passes,
            ", ".join(with_defaults(method.arguments.values())),
            method.summary,
            method.source,
            method.granularity.value,
        )
        for method in methods
    )
    return Table(title, ("method", "needs", "passes", "arguments", "summary", "source", "granularity"), rows)


def _in_full(method: MethodInfo, titled: bool) -> str:
    from prunecli.cli.tables import to_terminal

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
    of_weights = titled or method.granularity.value == "weight"
    heading = f"{method.name} (--granularity {method.granularity.value})" if of_weights else method.name
    return to_terminal((), heading, lines)


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
