"""What the code of a block can see besides what it holds and what it is given, and may go by or change.

These are the globals and the variables of enclosing functions that its methods name, and attributes of its
classes: as far as the code of its own classes, of functions that it holds and of functions that these call
tells. What is seen through further objects, or deeper than one level inside them, is not looked at.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final

from torch import Tensor, nn

from prunecli.graph.alike import PLAIN

Reader = Callable[[], Any]

_CONTAINERS: Final = (list, tuple, set, frozenset, deque)
_MAPPINGS: Final = (dict, OrderedDict)


class Surroundings:
    """The variables that code of some modules names.

    Args:
        modules: those whose code runs.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._readers: list[Reader] = []
        self._known: set[object] = set()
        for module in modules:
            self._add_class(type(module))
            for value in vars(module).values():
                self._add_value(value)

    def state(self) -> Hashable:
        """Return something that is another once a variable has another value, or holds others."""
        return tuple([_describe(read()) for read in self._readers])

    def _add_class(self, kind: type) -> None:
        if kind in self._known or _is_of_library(kind.__module__):
            return
        self._known.add(kind)
        self._readers.append(lambda: kind)
        for base in kind.__mro__:
            if not _is_of_library(base.__module__):
                for name, value in vars(base).items():
                    if name != "__init__":
                        self._add_value(value)

    def _add_value(self, value: Any) -> None:
        """Look into a function, or one behind a property or the like."""
        for function in (value, *(getattr(value, name, None) for name in ("__func__", "fget"))):
            if isinstance(function, FunctionType) and function not in self._known:
                self._known.add(function)
                if not _is_of_library(function.__module__):
                    self._add_function(function)

    def _add_function(self, function: FunctionType) -> None:
        for cell in function.__closure__ or ():
            self._add_variable(partial(_content_of, cell))
        around = function.__globals__
        for name in set(_names(function.__code__)):
            if name in around:
                self._add_variable(partial(around.get, name))

    def _add_variable(self, read: Reader) -> None:
        value = read()
        if isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, FunctionType):
            self._add_value(value)
        elif not isinstance(value, ModuleType):
            self._readers.append(read)


def _is_of_library(module: str | None) -> bool:
    """Return whether this is Python's or torch's, whose code goes by nothing but what it is given."""
    return (module or "").partition(".")[0] in ("builtins", "typing", "torch", "abc", "enum", "collections")


def _content_of(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value
        return None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _describe(value: Any) -> Hashable:
    kind = type(value)
    if kind in PLAIN:
        return kind, value
    if kind in _CONTAINERS:
        return id(value), *map(_describe_part, value)
    if kind in _MAPPINGS:
        return id(value), *map(_describe_part, value), *map(_describe_part, value.values())
    if isinstance(value, Tensor) or not hasattr(value, "__dict__"):
        return id(value)
    return id(value), *(
        (name, _describe_part(each)) if type(each) in PLAIN else (name, _length_of(each))
        for name, each in list(vars(value).items())
    )


def _describe_part(value: Any) -> Hashable:
    return value if type(value) in PLAIN else id(value)


def _length_of(value: Any) -> int:
    return len(value) if type(value) in (*_CONTAINERS, *_MAPPINGS) else 0
