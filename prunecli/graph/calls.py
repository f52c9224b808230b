"""Follows a forward pass call by call, above autograd: each call of a torch function has a key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunecli.graph.structure import CallKey

Counts: TypeAlias = Counter[tuple[str, str]]
"""How often a function was called in a module: (module, function) -> calls."""


class CallWatch(TorchFunctionMode):
    """Sees every call of a torch function, with its key, and carries it out.

    Calls inside a function that is watched are not seen. A subclass overrides `call`.

    Args:
        modules: The names of the modules whose forward is running, innermost last. It changes as they run.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        super().__init__()
        self._modules = modules
        self.so_far: Counts = Counter()

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call."""
        return func(*args, **kwargs)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", type(func).__name__)
        place = (self._modules[-1], name)
        key = CallKey(*place, self.so_far[place])
        self.so_far[place] += 1
        return self.call(key, func, args, kwargs or {})


@contextmanager
def following(model: nn.Module) -> Iterator[Sequence[str]]:
    """Yield the names of the modules whose forward is running, innermost last: a list that changes."""
    names = [""]
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            handles.append(module.register_forward_pre_hook(_entering(names, name)))
            handles.append(module.register_forward_hook(_leaving(names)))
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _entering(names: list[str], name: str) -> Callable[..., None]:
    return lambda *_: names.append(name)


def _leaving(names: list[str]) -> Callable[..., None]:
    def leave(*_: object) -> None:
        names.pop()

    return leave
