"""A versioned dataclass -> the JSON schema of what its `to_json` writes, with what its fields mean."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prunecli.strict_json import Json

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: Mapping[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}


def json_schema(cls: type, version: int, title: str) -> dict[str, Json]:
    """Return the schema of a dataclass that is written with a `version`.

    Args:
        cls: The dataclass, of fields that `strict_json` can read.
        version: What `version` says today; readers take no later one.
        title: What the file is called.
    """
    parts: dict[str, Json] = {}
    top = _object(cls, parts)
    top["properties"] = {"version": {"type": "integer", "minimum": 1, "maximum": version}} | top["properties"]
    top["required"] = ["version", *top["required"]]
    return {"$schema": _DIALECT, "title": title, **top, "$defs": dict(sorted(parts.items()))}


def _object(cls: type, parts: dict[str, Json]) -> dict[str, Json]:
    hints, meanings = get_type_hints(cls), _meanings(cls)
    described = {
        item.name: _type(hints[item.name], parts)
        | ({"description": meanings[item.name]} if item.name in meanings else {})
        for item in fields(cls)
    }
    needed = [
        item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING
    ]
    return {
        "description": inspect.cleandoc(cls.__doc__ or "").replace("\n", " "),
        "type": "object",
        "properties": described,
        "required": needed,
        "additionalProperties": False,
    }


def _type(hint: Any, parts: dict[str, Json]) -> dict[str, Json]:
    if hint is Any:
        return {}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(each, parts) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0], parts)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(arguments[1], parts)}
    if not is_dataclass(hint):
        return {"type": _SCALARS[hint]}
    name = hint.__name__  # type: ignore[union-attr]
    if name not in parts:
        parts[name] = {}  # before its fields, which may be of its own kind
        parts[name] = _object(hint, parts)  # type: ignore[arg-type]
    return {"$ref": f"#/$defs/{name}"}


def _meanings(cls: type) -> dict[str, str]:
    """Return what the texts below the fields say, in the source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for item, text in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(item.target, ast.Name)
        ):
            value = ast.literal_eval(text.value)
            found[item.target.id] = inspect.cleandoc(str(value)).replace("\n", " ")
    return found
