"""`copy.deepcopy` for modules: the same copies, an order of magnitude sooner.

What modules are made of (dicts, lists, numbers, other modules) is copied here; everything else, and every
class that says how it wants to be copied, is left to `copy.deepcopy`, with the same memo.
"""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeAlias

import torch
from torch import nn

Memo: TypeAlias = dict[int, Any]

_IMMUTABLE = frozenset(
    {
        *(int, float, bool, complex, str, bytes, type(None), type(Ellipsis)),
        *(type, FunctionType, BuiltinFunctionType),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    }
)
_MISSING = object()
_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
"""Attributes that every module has, and of which most are empty."""
_HAS_STATE = "__getstate__" in vars(nn.Module)
"""Whether torch says what the state of a module is; before, it was its attributes."""


def deepcopy(value: Any, memo: Memo) -> Any:
    """Return what `copy.deepcopy(value, memo)` returns."""
    kind: Any = type(value)
    if kind in _IMMUTABLE:
        return value
    known = memo.get(id(value), _MISSING)
    if known is not _MISSING:
        return known
    if kind is dict or (kind is OrderedDict and not vars(value)):
        made: Any = kind()
        memo[id(value)] = made
        if value:
            _copy_items(value, made, memo)
        return made
    if kind is list:
        made = []
        memo[id(value)] = made
        made.extend([deepcopy(each, memo) for each in value])
        return made
    if kind is tuple and _IMMUTABLE.issuperset(map(type, value)):
        return value
    if kind is set and _IMMUTABLE.issuperset(map(type, value)):
        made = memo[id(value)] = set(value)
        return made
    if isinstance(value, nn.Module) and _is_plain(kind):
        made = memo[id(value)] = object.__new__(kind)
        state: dict[str, Any] = {}
        _copy_items(value.__getstate__() if _HAS_STATE else vars(value), state, memo)
        made.__setstate__(state)
        return made
    return copy.deepcopy(value, memo)


def _copy_items(items: dict[Any, Any], into: dict[Any, Any], memo: Memo) -> None:
    immutable = _IMMUTABLE
    for key, value in items.items():
        kind = type(value)
        if kind in immutable:
            copied = value
        elif kind is OrderedDict and not value and key in _HOOKS:
            copied = OrderedDict()  # nobody registered any, and no other module has the same: not remembered
        elif (known := memo.get(id(value))) is not None:
            copied = known
        elif kind is tuple and immutable.issuperset(map(type, value)):
            copied = value
        else:
            copied = deepcopy(value, memo)
        into[key if type(key) is str else deepcopy(key, memo)] = copied


@cache
def _is_plain(kind: type[nn.Module]) -> bool:
    """Return whether instances are copied as most are: a new one is given a copy of the attributes."""
    return (
        kind.__new__ is object.__new__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and getattr(kind, "__getstate__", None) is getattr(nn.Module, "__getstate__", None)
        and not any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
        and kind not in copyreg.dispatch_table
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
    )
