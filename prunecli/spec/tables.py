"""Tables as TOML and JSON hold them <-> ModelSpec. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prunecli.errors import SpecError
from prunecli.spec.model_spec import (
    DataSpec,
    InputSpec,
    Metric,
    ModelSpec,
    Normalize,
    Target,
    TaskSpec,
    change_paths,
    is_absolute,
)
from prunecli.strict_json import DEEPEST

Table = Mapping[str, Any]
Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=Enum)


def from_json_dict(table: object, base: Path | None = None, *, trusted: bool = False) -> ModelSpec:
    """Read what `to_json_dict` wrote.

    Args:
        table: the parsed JSON (or TOML).
        base: the folder that relative paths start from; the current one if None.
        trusted: let the spec name any code. True only where the user chose the file.

    Raises:
        SpecError: a key is unknown or missing, or a value has the wrong type.
    """
    top = _Keys(table, "the spec", ("model", "input", "data", "task"))
    model = _Keys(top.table.get("model"), "[model]", ("factory", "args"))
    factory = model.read("factory", _text)
    if factory is None:
        raise SpecError('[model] has no `factory`. Add e.g. `factory = "model.py:build"`.')
    return ModelSpec(
        factory=factory,
        args=model.read("args", _plain_table) or {},
        inputs=_inputs(top.table.get("input", [])),
        data=_data(top.table.get("data", {})),
        task=_task(top.table.get("task", {})),
        base=base or Path(),
        trusted=trusted,
    )


def to_json_dict(spec: ModelSpec) -> dict[str, Any]:
    """Return the spec as JSON holds it: relative paths as written, absolute ones cut to the file's name."""
    data: dict[str, Any] = {
        key: without_folder(source)
        for key in ("sample", "train", "test")
        if (source := getattr(spec.data, key)) is not None
    }
    if spec.data.normalize is not None:
        data["normalize"] = {"mean": list(spec.data.normalize.mean), "std": list(spec.data.normalize.std)}
    data |= {key: size for key in ("resize", "crop") if (size := getattr(spec.data, key)) is not None}
    target = {} if spec.task.target is Target.LABEL else {"target": spec.task.target.value}
    return {
        "model": {"factory": without_folder(spec.factory), "args": dict(spec.args)},
        "input": [_input_table(item) for item in spec.inputs],
        "data": data,
        "task": {"loss": without_folder(spec.task.loss), "metric": spec.task.metric.value} | target,
    }


def plain_value(value: object, where: str, levels: int = DEEPEST) -> Any:
    """Return `value` as JSON holds it (tuples become lists).

    Args:
        value: what TOML, JSON or Python gave.
        where: what to call it in a message.
        levels: how many lists and tables may stand inside each other.

    Raises:
        SpecError: JSON has no such value: a date, an infinity; or it is nested too deeply.
    """
    if levels < 0:
        raise SpecError(f"{where} is nested deeper than {DEEPEST} levels.")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        return [plain_value(entry, where, levels - 1) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain_value(entry, where, levels - 1) for key, entry in value.items()}
    raise SpecError(f"{where} holds {value!r}, which is no text, number, true/false, list or table.")


def without_folder(text: str) -> str:
    """Cut each absolute path in `text` to its last part: the JSON tells nobody's folders."""
    return change_paths(text, _last_part)


def nearest(key: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return `did you mean ...?` for a misspelt key; if none is near, `otherwise`, or all known keys."""
    known = tuple(known)
    close = get_close_matches(key, known, n=1)
    return f"did you mean `{close[0]}`?" if close else otherwise or f"known here: {', '.join(known)}."


class _Keys:
    """A table whose keys have been checked, read one key at a time."""

    def __init__(self, table: object, where: str, known: Sequence[str]) -> None:
        if table is None:
            raise SpecError(f"The spec has no {where} table. A minimal one: {MINIMAL_SPEC}")
        if not isinstance(table, Mapping):
            raise SpecError(f"{where} is {_kind(table)}, not a table.")
        for key in table:
            if key not in known:
                raise SpecError(f"{where} has an unknown key `{key}`: {nearest(str(key), known)}")
        self.table: Table = table
        self.where = where

    def read(self, key: str, convert: Callable[[object, str], Value]) -> Value | None:
        """Return the converted value, or None if the key is absent."""
        if self.table.get(key) is None:
            return None
        return convert(self.table[key], f"{self.where} {key}")


MINIMAL_SPEC = '`[model]` with `factory = "model.py:build"`, and `[input]` with `shape = [3, 32, 32]`.'


def _inputs(value: object) -> tuple[InputSpec, ...]:
    tables = value if isinstance(value, list) else [value]
    return tuple(_input(table) for table in tables)


def _input(table: object) -> InputSpec:
    keys = _Keys(table, "[input]", ("shape", "dtype", "name", "high"))
    shape = keys.read("shape", _integers)
    if shape is None:
        raise SpecError("[input] has no `shape`. Add the shape of one sample, e.g. `shape = [3, 32, 32]`.")
    return InputSpec(
        shape=shape,
        dtype=keys.read("dtype", _text) or "float32",
        name=keys.read("name", _text),
        high=keys.read("high", _integer),
    )


def _input_table(item: InputSpec) -> dict[str, Any]:
    table: dict[str, Any] = {"shape": list(item.shape), "dtype": item.dtype}
    return table | {
        key: value for key, value in (("name", item.name), ("high", item.high)) if value is not None
    }


def _data(table: object) -> DataSpec:
    keys = _Keys(table, "[data]", ("sample", "train", "test", "normalize", "resize", "crop"))
    return DataSpec(
        sample=keys.read("sample", _text),
        train=keys.read("train", _text),
        test=keys.read("test", _text),
        normalize=keys.read("normalize", _normalize),
        resize=keys.read("resize", _integer),
        crop=keys.read("crop", _integer),
    )


def _normalize(value: object, where: str) -> Normalize:
    keys = _Keys(value, where, ("mean", "std"))
    mean, std = keys.read("mean", _numbers), keys.read("std", _numbers)
    if mean is None or std is None:
        raise SpecError(f"{where} needs both `mean` and `std`, e.g. {{ mean = [0.5], std = [0.25] }}.")
    return Normalize(mean, std)


def _task(table: object) -> TaskSpec:
    keys = _Keys(table, "[task]", ("loss", "metric", "target"))
    target = keys.read("target", partial(_member, Target)) or Target.LABEL
    usual = Metric.TOP1 if target is Target.LABEL else Metric.LOSS
    return TaskSpec(
        loss=keys.read("loss", _text) or "cross-entropy",
        metric=keys.read("metric", partial(_member, Metric)) or usual,
        target=target,
    )


def _member(kind: type[Choice], value: object, where: str) -> Choice:
    known = [member.value for member in kind]
    if value not in known:
        raise SpecError(f"{where} = `{value}` is unknown: {nearest(str(value), known)}")
    return kind(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{where} is {_kind(value)}, not a text.")
    return value


def _integer(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{where} is {_kind(value)}, not a whole number.")
    return value


def _integers(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise SpecError(f"{where} is {_kind(value)}, not a list of whole numbers.")
    return tuple(_integer(entry, where) for entry in value)


def _numbers(value: object, where: str) -> tuple[float, ...]:
    entries: list[Any] = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, (int, float)) or isinstance(entry, bool) or not math.isfinite(entry):
            raise SpecError(f"{where} holds {_kind(entry)}, not a number.")
    return tuple(map(float, entries))


def _plain_table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{where} is {_kind(value)}, not a table.")
    return {str(name): plain_value(entry, f"{where}.{name}") for name, entry in value.items()}


def _kind(value: object) -> str:
    return (
        f"{value!r} ({type(value).__name__})"
        if not isinstance(value, (dict, list))
        else f"a {type(value).__name__}"
    )


def _last_part(path: str) -> str:
    if not is_absolute(path):
        return path
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
