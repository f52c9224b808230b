"""Names in a checkpoint -> the same names as a model may have them: without prefixes and wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")

_WRAPPING_MODULES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What `torch.compile`, FSDP and activation checkpointing put into names, anywhere."""


def spellings(named: Mapping[str, Value]) -> Iterator[tuple[str, dict[str, Value]]]:
    """Yield the values with each prefix cut that all names share, with and without the names of wrappers.

    >>> [prefix for prefix, _ in spellings({"module.conv.weight": 0, "module.fc.weight": 1})][:2]
    ['', 'module.']
    """
    for plain in (dict(named), _without_wrappers(named)):
        prefix, shorter = "", plain
        while True:
            yield prefix, shorter
            first = {name.partition(".")[0] for name in shorter}
            if len(first) != 1 or not all("." in name for name in shorter):
                break
            part = f"{first.pop()}."
            prefix += part
            shorter = {name[len(part) :]: value for name, value in shorter.items()}


def _without_wrappers(named: Mapping[str, Value]) -> dict[str, Value]:
    shorter = {}
    for name, value in named.items():
        for part in _WRAPPING_MODULES:
            name = name.replace(part, "")
        shorter[name] = value
    return shorter if len(shorter) == len(named) else dict(named)
