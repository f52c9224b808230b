"""A command -> what there is to say of it, as data: arguments and options by panel, with their defaults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OPTIONS = "Options"
ARGUMENTS = "Arguments"


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    names: tuple[str, ...]
    """As they are typed, short ones first; of an argument, what stands for it in the usage."""
    value: str
    """What stands for the value; empty where there is none."""
    text: str
    default: str
    """As it would be typed; empty where there is none to speak of."""

    @property
    def written(self) -> str:
        """How it is given: `-q, --quiet`, or `--spec SPEC`."""
        return f"{', '.join(self.names)} {self.value}".rstrip()


@dataclass(frozen=True)
class Section:
    """Parameters that stand together under a heading."""

    title: str
    parameters: tuple[Parameter, ...]


def sections(command: Any, context: Any) -> list[Section]:
    """Return the panels of a command: arguments first, then options as they are declared, loose ones last."""
    panels: dict[str, list[Parameter]] = {ARGUMENTS: []}
    last = []
    for item in command.get_params(context):
        if getattr(item, "hidden", False):
            continue
        is_argument = item.param_type_name == "argument"
        title = ARGUMENTS if is_argument else getattr(item, "rich_help_panel", None) or OPTIONS
        if title == OPTIONS:
            last.append(_parameter(item))
        else:
            panels.setdefault(title, []).append(_parameter(item))
    found = [Section(title, tuple(items)) for title, items in panels.items() if items]
    return [*found, Section("Other options" if len(found) > 1 else OPTIONS, tuple(last))]


def usage(command: Any) -> str:
    """Return what follows the name of a command: `[OPTIONS] CKPT`; what may be left out in brackets."""
    arguments = (item for item in command.params if item.param_type_name == "argument")
    return " ".join(("[OPTIONS]", *(_place(item) for item in arguments)))


def examples(command: Any) -> list[str]:
    """Return the command lines that a command's epilog shows."""
    lines = (line.strip() for line in (command.epilog or "").splitlines())
    return [line for line in lines if line.startswith("prunecli ")]


def one_line(text: str) -> str:
    """Return a docstring's purpose as one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def _parameter(item: Any) -> Parameter:
    if item.param_type_name == "argument":
        return Parameter((_place(item),), "", one_line(item.help or ""), "")
    names = sorted(item.opts, key=lambda name: name.startswith("--")) + list(item.secondary_opts)
    value = "" if item.is_flag else item.metavar or "|".join(getattr(item.type, "choices", ("TEXT",)))
    return Parameter(tuple(names), value, one_line(item.help or ""), _default(item))


def _place(item: Any) -> str:
    name = (item.metavar or item.name.upper()).strip("[]")
    return name if item.required else f"[{name}]"


def _default(item: Any) -> str:
    """Return what holds where the option is not given.

    Of a flag that can be said both ways, the way that holds; nothing where the text says it.
    """
    if item.secondary_opts and isinstance(item.default, bool):
        return str((item.opts if item.default else item.secondary_opts)[0])
    if item.is_flag or not item.show_default or callable(item.default):
        return ""
    return ", ".join(_flat(item.default))


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        yield from map(str, value)
    elif value is not None and value != "":
        yield str(value)
