"""The tensors in whatever a forward pass, or a call in it, takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested containers, mappings, dataclasses and plain objects, in order.

    >>> tensors_in({"a": [1, "text"]})
    []
    """
    found: list[Tensor] = []
    _collect(value, found, set())
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif id(value) not in seen and not isinstance(value, (str, bytes, int, float, type(None))):
        seen.add(id(value))
        if isinstance(value, Mapping):
            parts = list(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            parts = list(value)
        else:
            parts = list(getattr(value, "__dict__", {}).values())
        for part in parts:
            _collect(part, found, seen)
