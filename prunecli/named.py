"""What users call by name (methods, schedules): one class in one file each; the tables of them. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from prunecli.arguments import Argument, arguments_in, nearest
from prunecli.errors import UsageError


class Named:
    """One row of a table: a class, and what its docstring and its fields say of it."""

    name: str
    make: Callable[..., Any]

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """Everything that is said of it, one line per paragraph, the summary first."""
        text = inspect.cleandoc(self.make.__doc__ or "")
        return tuple(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """Its arguments, by name."""
        return arguments_in(self.make)


_Row = TypeVar("_Row", bound=Named)


class Table(Generic[_Row]):
    """Rows by name.

    Args:
        kind: What a row is, as users call it: `method`. The command `prunecli KINDs` lists them.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._rows: dict[str, _Row] = {}

    def enter(self, row: _Row) -> _Row:
        """Add a row, and return it."""
        if row.name in self._rows:
            raise ValueError(f"Two {self.kind}s are called `{row.name}`.")
        self._rows[row.name] = row
        return row

    def all(self) -> tuple[_Row, ...]:
        """Return all rows, by name."""
        return tuple(self._rows[name] for name in sorted(self._rows))

    def find(self, name: str) -> _Row:
        """Return the row called `name`.

        Raises:
            UsageError: There is none; the message names the nearest.
        """
        if name in self._rows:
            return self._rows[name]
        hint = nearest(name, self._rows)
        raise UsageError(f"There is no {self.kind} `{name}`.{hint} `prunecli {self.kind}s` lists them all.")
