"""Harmless values that take the place of what training scripts leave in checkpoints beside the parameters.

`torch.load(weights_only=True)` refuses every global that it does not know. Those listed here are common and
carry no parameters we could not do without, so each is read as a plain value made by the code below; the
class that the file names is never imported, and none of its code runs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Opaque:
    """A value that nobody reads: whatever it was made of is dropped."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class DType:
    """A NumPy dtype, by its code: `f8`."""

    code = ""
    is_big_endian = False

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order from (version, order, ...), as NumPy writes it."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", b"<", b">"):
            self.is_big_endian = state[1] in (">", b">")

    def numpy(self) -> np.dtype[Any]:
        """Return the NumPy dtype of numbers or bools; ValueError for any other."""
        dtype: np.dtype[Any] = np.dtype(self.code.lstrip("<>|=") or "O")
        if dtype.kind not in "biuf":
            raise ValueError(f"dtype {self.code} holds no numbers")
        ordered: np.dtype[Any] = dtype.newbyteorder(">" if self.is_big_endian else "<")
        return ordered


class Array:
    """A NumPy array; `tensor` is None if it holds anything but numbers."""

    tensor: Tensor | None = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Take (version, shape, dtype, is Fortran order, bytes), as NumPy writes it."""
        try:
            _, shape, dtype, is_fortran, raw = state
            if not isinstance(dtype, DType) or not isinstance(raw, (bytes, bytearray)):
                return
            array = np.frombuffer(raw, dtype.numpy())
            if (
                all(type(length) is int and length >= 0 for length in shape)
                and math.prod(shape) == array.size
            ):
                array = array.reshape(shape, order="F" if is_fortran else "C")
                self.tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        except (TypeError, ValueError):
            return


def scalar(dtype: object = None, raw: object = b"") -> object:
    """Return a NumPy scalar as a Python number."""
    try:
        if isinstance(dtype, DType) and isinstance(raw, (bytes, bytearray)):
            return np.frombuffer(raw, dtype.numpy(), count=1)[0].item()
    except (TypeError, ValueError):
        pass
    return None


def path(*parts: object) -> str:
    """Return a path as text; what is no path, or too long for one, as none."""
    texts = [part for part in parts if isinstance(part, str)]
    return str(PurePosixPath(*texts)) if sum(map(len, texts)) <= _LONGEST_PATH else ""


def make_array(*_: object) -> Array:
    """Begin an array, which its state completes."""
    return Array()


def make_dict(*_: object) -> OrderedDict[Any, Any]:
    """Begin a dict whose default is forgotten."""
    return OrderedDict()


def bare(content: Any) -> Any:
    """Take the attributes off dicts and tensors, which a file may set: `items` would be what it likes.

    Args:
        content: what was read; it is changed in place, and returned.
    """
    left, seen = [content], {id(content)}
    while left:
        each = left.pop()
        if isinstance(each, (OrderedDict, Tensor)):
            vars(each).clear()
        inside = (
            [*each.values()] if isinstance(each, dict) else each if isinstance(each, (list, tuple)) else ()
        )
        new = {id(item): item for item in inside if id(item) not in seen}
        seen |= new.keys()
        left += new.values()
    return content


_LONGEST_PATH = 4096
_BUILTINS = ("int", "float", "bool", "str", "list", "dict", "tuple")
"""Classes that files mention, and hardly ever call. Called, `str` of `list` of `str`... fills the memory."""
_HARMLESS = (slice, frozenset)
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")

STAND_INS: tuple[tuple[Callable[..., Any], str], ...] = (
    (SimpleNamespace, "argparse.Namespace"),
    (SimpleNamespace, "types.SimpleNamespace"),
    (make_dict, "collections.defaultdict"),
    *((path, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *((Opaque, f"{module}.{name}") for module in ("builtins", "__builtin__") for name in _BUILTINS),
    *((scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    *((make_array, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
    *((kind, f"{module}.{kind.__name__}") for module in ("builtins", "__builtin__") for kind in _HARMLESS),
    (DType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((Opaque, f"datetime.{name}") for name in ("datetime", "date", "time", "timedelta", "timezone")),
)
"""(what is used, what the file names)."""
