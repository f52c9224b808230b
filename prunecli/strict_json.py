"""Frozen dataclasses <-> JSON, strictly: a missing, unknown or mistyped field is named, never guessed.

Fields may be `int`, `float`, `str`, `bool`, a `Literal`, `X | None`, `tuple[X, ...]`, `Mapping[str, X]`,
another dataclass, or `Json` (anything that JSON can hold, kept as it is).
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Json = Any
"""A value that JSON can hold."""

T = TypeVar("T")

DEEPEST = 64
"""How many lists and objects may stand inside each other."""
_MOST_LISTS = 4_000_000
_MOST_VALUES = 20_000_000
"""Of both there may be so many in all: an empty list of two letters takes 64 bytes of memory."""
_WIDEST = 2**64
"""Integers are smaller than this: larger ones count nothing, and overflow where they are divided."""
_LARGEST = 1e100
"""Numbers are smaller than this, so that sums of their squares are numbers too."""
_SCALARS: dict[type, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


class FieldError(ValueError):
    """A field of the JSON is not what its dataclass declares. The message names it."""


class JsonError(ValueError):
    """A text is not JSON, or not as a program writes it for another. The message says why, in few words."""


class VersionError(ValueError):
    """A text is not versioned JSON, or of a later version. The message is a whole sentence."""


def parse_json(text: str | bytes, finite: bool = True) -> Json:
    """Parse JSON from an unknown hand: keys come once, and nesting has an end.

    Args:
        text: The JSON, in UTF-8 where it is bytes.
        finite: Refuse NaN and infinities, which JSON does not have but Python writes.

    Raises:
        JsonError: it is no such JSON.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    prunecli.strict_json.JsonError: `a` comes twice
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        _check_numbers(text)
        data = json.loads(
            text,
            parse_float=_finite if finite else None,
            parse_constant=_finite if finite else None,
            object_pairs_hook=_without_twins,
        )
        if "\\ud" in text.lower():  # half of a pair is no character, and cannot be written to any file
            json.dumps(data, ensure_ascii=False).encode()
    except JsonError:
        raise
    except RecursionError:
        raise JsonError(f"it is nested deeper than {DEEPEST} levels") from None
    except ValueError as error:  # of which UnicodeError is one
        raise JsonError(_cut(str(error), 120)) from None
    _check_nesting(data)
    return data


def _check_numbers(text: str) -> None:
    """Refuse a text that would take many times its own length of memory, before any of it is taken."""
    if text.count("[") + text.count("{") > _MOST_LISTS or text.count(",") > _MOST_VALUES:
        raise JsonError(f"it has more than {_MOST_LISTS:,} lists and objects, or {_MOST_VALUES:,} values")


def _check_nesting(data: Json) -> None:
    """Walk through all levels, so that nothing that reads them afterwards has to fear their depth."""
    level = [data]
    for _ in range(DEEPEST + 1):
        values = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [item for inside in values if isinstance(inside, list) for item in inside]
        if not level:
            return
    raise JsonError(f"it is nested deeper than {DEEPEST} levels")


def read_versioned(text: str, newest: int, what: str, key: str = "version") -> dict[str, Json]:
    """Parse a JSON object that says its version, and return the rest of it.

    Args:
        text: The JSON.
        newest: The latest version that is known.
        what: What to call the text in messages.
        key: What its version is called.

    Raises:
        VersionError: it is no such object, or of a later version.

    >>> read_versioned('{"version": 1, "title": "net"}', 2, "`net.json`")
    {'title': 'net'}
    """
    try:
        data = parse_json(text)
    except JsonError as error:
        raise VersionError(f"{what} is not JSON ({error}).") from None
    version = data.pop(key, None) if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise VersionError(f"{what} has no valid `{key}` number.")
    if version > newest:
        raise VersionError(
            f"{what} has {key} {version}, but this prunecli reads up to {newest}. Update prunecli."
        )
    return dict(data)


def to_plain(value: Any) -> Json:
    """Turn dataclasses, tuples and mappings into dicts and lists, leaving everything else alone."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[T], data: Json, where: str = "") -> T:
    """Build the dataclass `cls` from what `to_plain` made of it.

    Args:
        cls: A dataclass.
        data: What JSON held.
        where: Path of the field, for the message: `layers[3].macs`.

    Raises:
        FieldError: naming the field, what was found and what was expected.
    """
    _expect(isinstance(data, dict), where, data, "an object")
    hints = _hints(cls)  # type: ignore[arg-type]
    declared = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for name in data:
        if name not in declared:
            raise FieldError(f"`{_join(where, name)}`: unknown field, expected one of {', '.join(declared)}")
    values = {}
    for name, item in declared.items():
        if name in data:
            values[name] = _read(hints[name], data[name], _join(where, name))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise FieldError(f"`{_join(where, name)}`: missing field")
    return cls(**values)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read(hint: Any, data: Json, where: str) -> Any:
    if hint is Any:
        return data
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, where)
    if origin is Literal:
        _expect(data in arguments, where, data, f"one of {', '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        _expect(isinstance(data, list), where, data, "a list")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(data, dict), where, data, "an object")
        return {key: _read(arguments[1], item, _join(where, key)) for key, item in data.items()}
    if is_dataclass(hint):
        return from_plain(hint, data, where)  # type: ignore[arg-type]
    return _read_scalar(hint, data, where)


def _read_union(choices: tuple[Any, ...], data: Json, where: str) -> Any:
    if data is None and type(None) in choices:
        return None
    wanted = [choice for choice in choices if choice is not type(None)]
    if len(wanted) == 1:
        return _read(wanted[0], data, where)
    exact = next((choice for choice in wanted if type(data) is choice), None)
    _expect(exact is not None, where, data, " or ".join(_SCALARS[choice] for choice in wanted))
    return data


def _read_scalar(hint: type, data: Json, where: str) -> Any:
    if type(data) is int:
        _expect(-_WIDEST < data < _WIDEST, where, data, "a number of 64 bits")
    if type(data) is float and isfinite(data):
        _expect(abs(data) < _LARGEST, where, data, f"a number below {_LARGEST:g}")
    if hint is float and type(data) is int:
        return float(data)
    _expect(type(data) is hint, where, data, _SCALARS[hint])
    return data


def _finite(text: str) -> float:
    """Read a number; NaN and infinities, which JSON does not have, are refused."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


def _without_twins(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Build an object, refusing a key that comes twice: programs differ in which of the two they believe."""
    found: dict[str, Json] = {}
    for key, value in pairs:
        if key in found:
            raise JsonError(f"`{_cut(key)}` comes twice")
        found[key] = value
    return found


def _expect(holds: bool, where: str, found: Json, expected: str) -> None:
    if not holds:
        raise FieldError(f"`{where or '(top)'}`: found {_cut(repr(found))}, expected {expected}")


def _cut(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
