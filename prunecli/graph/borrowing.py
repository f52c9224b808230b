"""What a pass over a model borrows and gives back: modes, random numbers. And noise, kept out of proofs."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.graph.copying import walk


@contextmanager
def uncollected() -> Iterator[None]:
    """Put off looking for garbage in cycles: what a trace makes lives on, and is searched in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def kept_rng() -> Iterator[None]:
    """Leave the generators of torch (on all devices), NumPy and Python as they were found."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def set_mode(modules: Iterable[tuple[str, nn.Module]], *, training: bool) -> None:
    """Set the mode of every module; not by `.train()`, which some models override to rewrite weights."""
    for _, module in modules:
        if module.training is not training:
            module.training = training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and give each its own mode back."""
    modules = walk(model)
    modes = {module: module.training for _, module in modules}
    set_mode(modules, training=False)
    try:
        yield
    finally:
        for module, training in modes.items():
            if module.training is not training:
                module.training = training


def run_without_noise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation; where it draws random numbers, every number drawn is one half, and nothing drops."""
    out = func(*args, **kwargs)
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return out
    if func.overloadpacket.__name__ in {"native_dropout", "dropout"}:
        return (args[0].clone(), torch.ones_like(args[0], dtype=torch.bool))
    with torch.no_grad():
        for drawn in tree_leaves(out):
            if isinstance(drawn, Tensor):
                drawn.fill_(0.5 if drawn.is_floating_point() else 0)
    return out


class WithoutNoise(TorchDispatchMode):
    """Makes forward passes that draw random numbers repeatable, whatever shapes they draw."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run_without_noise(func, args, kwargs or {})
