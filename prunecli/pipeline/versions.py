"""The packages that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from prunecli import __version__

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "safetensors")


def versions() -> dict[str, str]:
    """Return name -> version of Python, prunecli and what it stands on."""
    found = {"prunecli": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
