"""Where and in what precision models run, and what is said when the user's own code fails there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import nn

from prunecli.errors import DataError, PruneError, UsageError
from prunecli.graph.copying import clean_copy, copy_module
from prunecli.memory import is_for_want_of_memory
from prunecli.on_demand import is_on_demand
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.processes import ALONE, Processes
from prunecli.pipeline.settings import DeviceName, Machine

_WORKING = {dtype: torch.float32 for dtype in (torch.float16, torch.bfloat16)}
"""Precisions too coarse to measure in, unless the user asks for them."""

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Place:
    """Where a model runs, and in what precision; None is that of its checkpoint, but at least float32."""

    device: torch.device
    dtype: torch.dtype | None
    processes: Processes = ALONE
    """Which of the processes that share the work runs it."""

    @property
    def in_full(self) -> Place:
        """The same, but at least in single precision: where a model is measured that trained in half."""
        return replace(self, dtype=None) if self.dtype in _WORKING else self

    def dtype_of(self, model: nn.Module) -> torch.dtype:
        """Return the precision in which the model runs here."""
        own = float_dtype(model)
        return self.dtype or _WORKING.get(own, own)

    def lend(self, model: nn.Module) -> nn.Module:
        """Return the model as it runs here: itself if nothing changes, else a copy."""
        dtype = self.dtype_of(model)
        if self.device.type == "cpu" and dtype == float_dtype(model):
            return model
        if is_on_demand(model):
            return copy_module(
                model,
                lambda _, each: each.detach().to(dtype if each.is_floating_point() else each.dtype).clone(),
            )
        return clean_copy(model).to(device=self.device, dtype=dtype)


@contextmanager
def running_on(machine: Machine, listener: Listener, processes: Processes = ALONE) -> Iterator[Place]:
    """Choose device, precision and threads as the user asked, and give the threads back at the end.

    Raises:
        UsageError: the device named is not there.
    """
    threads = torch.get_num_threads()
    device = torch.device(_choose_device(machine.device))
    if processes.are_several and device.type == "cuda":
        device = torch.device("cuda", processes.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    sharing = f", {processes.count} processes" if processes.are_several else ""
    listener.note(f"device: {_describe(device)}{sharing}")
    try:
        if machine.threads is not None:
            torch.set_num_threads(machine.threads)
        yield Place(device, None if machine.dtype == "auto" else _DTYPES[machine.dtype], processes)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def explained(model: nn.Module, doing: str) -> Iterator[None]:
    """Turn what the user's forward raises into one line that names the module.

    Raises:
        DataError: the forward failed, or its batch did not fit into memory.
    """
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        if is_for_want_of_memory(error):
            raise DataError(f"{doing}: out of memory. Use a smaller `--batch-size`.") from error
        place = blame(model, error.__traceback__)
        reason = next(iter(str(error).strip().splitlines()), "no message").rstrip(".")
        raise DataError(
            f"{doing}: the model failed{place} with {type(error).__name__}: {reason[:300]}. "
            "Check that `[input]` and the data are what it was trained on."
        ) from error


def parse_bytes(text: str, option: str) -> int:
    """Read an amount of memory.

    >>> parse_bytes("1.5GiB", "--max-memory")
    1610612736

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UsageError(f"`{option} {text}`: write an amount of memory such as 500MB or 4GiB.")
    power = " KMGT".index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def float_dtype(model: nn.Module) -> torch.dtype:
    """Return the precision of a model's parameters, which its float inputs need too."""
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)


def blame(model: nn.Module, trace: TracebackType | None) -> str:
    """Return ` in MODULE` for the innermost module whose code an error came from, or nothing."""
    names = {id(module): name or "the root" for name, module in model.named_modules()}
    found = ""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            found = f" in `{names[id(owner)]}` ({type(owner).__name__})"
        trace = trace.tb_next
    return found


def _choose_device(name: DeviceName) -> str:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        known = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise UsageError(f"`--device {name}`: this PyTorch sees only {known}. Use `--device auto`.")
    return name


def _describe(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name()})" if device.type == "cuda" else device.type
