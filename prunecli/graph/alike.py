"""Which modules of a model are alike: the same code, the same settings, tensors of the same shapes.

What is compared are the attributes of modules, all the way down. Only plain values, functions and classes
can be compared; a module that holds anything else, or that has hooks, is like no other.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from operator import is_
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

import torch
from torch import Tensor, nn

OF_TRACER: Final[Any] = "prunecli"
"""The key of hooks that are ours, and say nothing of a module. They are put in place without handles, which
take longer than all calls of the hooks."""

_OF_EVERY_MODULE: Final = frozenset(vars(nn.Module())) - {"training"}
_HOOKS: Final = tuple(
    name for name in _OF_EVERY_MODULE if name.endswith("_hooks") and "state_dict" not in name
)
PLAIN: Final = frozenset(
    {int, float, bool, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Types of values that are no more than what they look like."""

_CONTAINERS: Final = frozenset({list, dict, OrderedDict, set, tuple})
_CODE: Final = frozenset({type, FunctionType, BuiltinFunctionType})
_TENSORS: Final = frozenset({Tensor, nn.Parameter})
NOT_COMPARABLE: Final = -1
"""The kind of modules that are like no other."""

_OURS: Final = frozenset({OF_TRACER})


class Override(partial[Any]):
    """What runs in the place of a module's own `forward` while it is followed: nothing that it holds."""


class Kinds:
    """Numbers for kinds of modules: alike modules have the same."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._of: dict[nn.Module, int] = {}
        self._looks: dict[nn.Module, _Look] = {}

    def has_changed(self, module: nn.Module) -> bool:
        """Return whether a module with a number may be another than when that was asked for first."""
        if self._looks_the_same(module):
            return False
        before, self._of = self._of, {}
        try:
            return before[module] == NOT_COMPARABLE or self.of(module) != before[module]
        finally:
            self._of = before

    def _looks_the_same(self, module: nn.Module) -> bool:
        """Return whether a module, and all inside it, holds the very things that it held: a quick look."""
        look = self._looks.get(module)
        return (
            look is not None
            and look.is_still(module)
            and all(child is None or self._looks_the_same(child) for child in module._modules.values())
        )

    def of(self, module: nn.Module) -> int:
        """Return the number of the module's kind."""
        known = self._of.get(module)
        if known is None:
            self._of[module] = NOT_COMPARABLE  # for a module that contains itself
            described = self._describe(module)
            known = NOT_COMPARABLE
            if described is not None:
                known = self._numbers.setdefault(described, len(self._numbers))
                if module not in self._looks:
                    self._looks[module] = _Look(module)
            self._of[module] = known
        return known

    def _describe(self, module: nn.Module) -> Hashable | None:
        parts: list[Any] = [type(module)]
        for name, child in module._modules.items():
            number = None if child is None else self.of(child)
            if number == NOT_COMPARABLE:
                return None
            parts += (name, number)
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                described = None if tensor is None else _describe_tensor(tensor)
                if described is None and tensor is not None:
                    return None
                parts += (name, described)
        attributes = vars(module)
        for name in _HOOKS:
            hooks = attributes[name]
            if hooks and not hooks.keys() <= _OURS:
                return None
        for name, value in attributes.items():
            if name in _OF_EVERY_MODULE:
                continue
            if type(value) in PLAIN:
                parts += (name, type(value), value)
                continue
            if name == "forward":
                if type(value) is Override:
                    continue
                return None  # it runs other code than its class has
            described = _comparable(value)
            if described is None:
                return None
            parts += (name, described)
        return tuple(parts)


class _Look:
    """What a module holds, by identity."""

    def __init__(self, module: nn.Module) -> None:
        self._holds = tuple(dict(each) for each in _dicts_of(module))
        tensors = [each for dicts in self._holds[1:3] for each in dicts.values() if each is not None]
        self._shapes = [(each, each.shape) for each in tensors]
        own = [value for name, value in self._holds[0].items() if name not in _OF_EVERY_MODULE]
        made_of_others = [value for value in own if type(value) in _CONTAINERS]
        self._lists = [(value, list(value)) for value in made_of_others if type(value) is list]
        self._is_deep = any(
            type(value) not in (list, tuple) or not PLAIN.issuperset(map(type, value))
            for value in made_of_others
        )

    def is_still(self, module: nn.Module) -> bool:
        """Return whether it certainly is as it was."""
        if self._is_deep or any(value != before for value, before in self._lists):
            return False
        if any(tensor.shape != shape for tensor, shape in self._shapes):
            return False
        attributes = vars(module)
        for now, before in zip(_dicts_of(module), self._holds, strict=True):
            is_ours = now is attributes and type(attributes.get("forward")) is Override
            if len(now) - is_ours != len(before) or not all(map(is_, before, now)):
                return False
            if not all(map(is_, before.values(), now.values())):
                return False
        return not any(attributes[name] and not attributes[name].keys() <= _OURS for name in _HOOKS)


def _dicts_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return vars(module), module._parameters, module._buffers, module._modules


def repeated_blocks(modules: Iterable[tuple[str, nn.Module]], kinds: Kinds) -> dict[str, nn.Module]:
    """Return the modules made of others that have their like in a model: the outermost ones, by name.

    Args:
        modules: those of the model, from the root down.
        kinds: what tells whether modules are alike.

    >>> pair = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)]
    >>> list(repeated_blocks(nn.Sequential(*pair, nn.Linear(2, 2)).named_modules(), Kinds()))
    ['0', '1']
    """
    made_of_others = [(name, module) for name, module in modules if name and module._modules]
    numbers = [kinds.of(module) for _, module in made_of_others]
    counts = Counter(number for number in numbers if number != NOT_COMPARABLE)
    blocks: dict[str, nn.Module] = {}
    outer = ""
    for (name, module), number in zip(made_of_others, numbers, strict=True):
        if counts[number] > 1 and not (outer and name.startswith(outer)):
            blocks[name], outer = module, f"{name}."  # what is inside comes next
    return blocks


def _describe_tensor(tensor: Tensor) -> Hashable | None:
    if type(tensor) not in _TENSORS or tensor.layout is not torch.strided:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _comparable(value: Any) -> Hashable | None:
    """Return something equal for equal values, or None if the value may hold more than can be seen."""
    kind = type(value)
    if kind in PLAIN or kind in _CODE:
        return kind, value
    if kind in (tuple, list):
        if PLAIN.issuperset(map(type, value)):
            return kind, *map(type, value), *value
        return _all_of(kind, value)
    if kind in (set, frozenset) and PLAIN.issuperset(map(type, value)):
        return kind, frozenset(value)
    if kind in (dict, OrderedDict):
        return _all_of(kind, [part for item in value.items() for part in item])
    return None


def _all_of(kind: type, values: Sequence[Any]) -> Hashable | None:
    parts = [_comparable(each) for each in values]
    return None if None in parts else (kind, *parts)
