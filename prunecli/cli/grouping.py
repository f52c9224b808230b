"""Groups of options -> parameters of a command, so that commands take a few values instead of forty."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from prunecli.cli.completion import Completer

_CONTEXT = "context"


@dataclass(frozen=True)
class Described:
    """One option for the help: its names, what it does, and how its value is written."""

    help: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    min: float | None = None
    max: float | None = None
    complete: Completer | None = None
    """What the shell completes its value to; by default names of files."""


class Given(frozenset[str]):
    """Names of the options that the user gave: a command that has a parameter of this type is told."""


@dataclass(frozen=True)
class Panel:
    """A group of options: its heading in the help, and a description of every field of its dataclass."""

    title: str
    options: Mapping[str, Described]


def grouped(panels: Mapping[type, Panel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command declare whole groups: a parameter annotated with a group becomes one option per field.

    The dataclass gives types and defaults, its panel the names and the help. The command is called with
    instances of the dataclasses.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(command, eval_str=True).parameters  # Python 3.10's hints add `| None`
        hints = {name: parameter.annotation for name, parameter in declared.items()}
        groups = {name: hints[name] for name in hints if hints[name] in panels}
        told = [name for name in hints if hints[name] is Given]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(_CONTEXT, keyword, annotation=typer.Context)]
        for name, parameter in declared.items():
            if name in groups:
                parameters += _parameters(groups[name], panels[groups[name]])
            elif name not in told:
                parameters.append(parameter.replace(kind=keyword))

        def call(**values: Any) -> None:
            given = _given(values.pop(_CONTEXT))
            for name, group in groups.items():
                values[name] = group(**{item.name: _frozen(values.pop(item.name)) for item in fields(group)})
            command(**values, **dict.fromkeys(told, given))

        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call

    return wrap


def _given(context: typer.Context) -> Given:
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return Given(name for name, source in sources.items() if source and not source.name.startswith("DEFAULT"))


def _parameters(group: Any, panel: Panel) -> list[inspect.Parameter]:
    hints = get_type_hints(group)
    parameters = []
    for item in fields(group):
        described = panel.options[item.name]
        kind, default = hints[item.name], item.default
        if get_origin(kind) is tuple:
            kind, default = list[get_args(kind)[0]], list(default)  # type: ignore[misc, arg-type]
        option = typer.Option(
            *(described.names or (f"--{item.name.replace('_', '-')}",)),
            help=described.help,
            metavar="" if kind is bool else described.metavar,
            min=described.min,
            max=described.max,
            autocompletion=described.complete,
            show_default=default is not None and default != [] and kind is not bool,
            rich_help_panel=panel.title,
        )
        parameters.append(
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=Annotated[kind, option],
            )
        )
    return parameters


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
