"""The story of `doctor`: this machine -> what prunecli stands on here, and what of it does not work."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from prunecli import __version__
from prunecli.pipeline.versions import PACKAGES

_OPTIONAL = {
    "timm": "models of timm (`timm:NAME`); install with `pip install timm`",
    "transformers": "folders of Hugging Face (`hf:FOLDER`); install with `pip install transformers`",
}
"""Packages that nothing else needs -> what they are for."""


@dataclass(frozen=True)
class Part:
    """A package that prunecli stands on."""

    name: str
    version: str | None
    """None: it is not installed."""
    needed: bool
    problem: str | None = None
    """Why it is of no use here; None if it is."""


@dataclass(frozen=True)
class Device:
    """Something that models can run on."""

    name: str
    """As `--device` names it."""
    description: str


@dataclass(frozen=True)
class Health:
    """What was found."""

    prunecli: str
    python: str
    system: str
    parts: tuple[Part, ...]
    devices: tuple[Device, ...]
    chosen: str | None
    """What `--device auto` means here; None where PyTorch does not work."""

    @property
    def is_well(self) -> bool:
        """Whether everything that is needed works."""
        return not any(part.problem for part in self.parts if part.needed)


def examine() -> Health:
    """Look at the packages, by importing each, and at the devices."""
    needed = tuple(_part(name, needed=True) for name in (*PACKAGES, "onnxscript"))
    optional = tuple(_part(name, needed=False) for name in _OPTIONAL)
    is_there = not any(part.problem for part in needed if part.name == "torch")
    devices = tuple(_devices()) if is_there else ()
    names = [device.name for device in devices]
    chosen = next((name for name in ("cuda", "mps", "cpu") if name in names), None)
    system = f"{platform.system()} {platform.machine()}"
    return Health(__version__, platform.python_version(), system, (*needed, *optional), devices, chosen)


def _part(name: str, *, needed: bool) -> Part:
    try:
        found = version(name)
    except PackageNotFoundError:
        remedy = f"pip install {name}" if needed else _OPTIONAL[name]
        return Part(name, None, needed, f"not installed: {remedy}")
    try:
        import_module(name)
    except Exception as error:  # a package that does not fit the others may raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return Part(name, found, needed, f"cannot be imported: {reason[:200]}. Install it anew.")
    return Part(name, found, needed)


def _devices() -> list[Device]:
    import torch

    threads = f"{os.cpu_count() or 1} cores, {torch.get_num_threads()} threads by default"
    devices = [Device("cpu", threads)]
    if torch.cuda.is_available():
        devices += [Device("cuda", _describe(index)) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "the GPU of a Mac"))
    return devices


def _describe(index: int) -> str:
    import torch

    found = torch.cuda.get_device_properties(index)
    memory = found.total_memory / 2**30
    return f"{found.name}, {memory:.0f} GiB, compute capability {found.major}.{found.minor}"
