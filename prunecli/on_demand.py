"""Tensors without memory of their own: each operation on one reads it anew, and lets go of it after.

A network of such parameters runs, is cut and is proven like any other, in the memory of its largest few
tensors. `mapped` reads from a file; anything else that returns a tensor will do.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunecli.errors import CheckpointError

Read = Callable[[], Tensor]
"""Returns a tensor that belongs to the caller, who may write to it."""
ReadParts = Callable[[], Iterable[Tensor]]
"""Returns the same as blocks of it, of which each follows the last one in the first dimension."""

_aten = torch.ops.aten
_ALIGNED = 64
"""At multiples of so many bytes PyTorch itself puts tensors."""


class OnDemand(Tensor):
    """A tensor on the CPU that is read whenever it is used.

    What `detach`, `clone` and changes of dtype return is on demand too. Of changes in place, only
    `index_fill_` is understood: it is done again after each reading. Where it can be read in parts, a
    linear layer is computed with one of them at a time.
    """

    read: Read
    read_parts: ReadParts | None
    """Where it can be read in parts: who needs some of it only need not hold all."""
    read_columns: ReadParts | None
    """The same of a matrix that was turned: its parts follow each other in the last dimension."""

    @staticmethod
    def __new__(
        cls, shape: Sequence[int], dtype: torch.dtype, read: Read, read_parts: ReadParts | None = None
    ) -> OnDemand:
        """Return a tensor of which `read` returns the values, in that shape and dtype."""
        made: OnDemand = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        made.read, made.read_parts, made.read_columns = read, read_parts, None
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on what is read, or note it where that is enough."""
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], OnDemand) else None
        if first is not None and func in (_aten.detach.default, _aten.clone.default, _aten.alias.default):
            return OnDemand(first.shape, first.dtype, first.read, first.read_parts)
        if first is not None and func is _aten._to_copy.default and _changes_dtype_only(kwargs):
            return _cast(first, kwargs.get("dtype") or first.dtype)
        if first is not None and func is _aten.empty_like.default:
            args = (torch.empty(first.shape, dtype=first.dtype, device="meta"),)
            return func(*args, **{"device": "cpu", **kwargs})
        if first is not None and func is _aten.index_fill_.int_Scalar and not kwargs:
            return _filled(first, *args[1:])
        if first is not None and func is _aten.t.default and first.read_parts is not None:
            return _turned(first, first.read_parts)
        if func in (_aten.mm.default, _aten.addmm.default) and not kwargs:
            weight = args[-1]
            if isinstance(weight, OnDemand) and weight.read_columns is not None:
                return _by_columns(func, args[:-1], weight.shape[1], weight.read_columns)
        _refuse_writing(func, args, kwargs)
        args, kwargs = tree_map_only(OnDemand, lambda tensor: tensor.read(), (args, kwargs))
        return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return another that reads the same."""
        made: Tensor = OnDemand(self.shape, self.dtype, self.read, self.read_parts)
        if isinstance(self, nn.Parameter):
            made = nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return shape and dtype; the values stay where they are."""
        return f"OnDemand({list(self.shape)}, {self.dtype})"


def mapped(path: Path, begin: int, shape: Sequence[int], dtype: torch.dtype) -> OnDemand:
    """Return a tensor whose bytes are those of the file from `begin` on, mapped while they are used.

    Args:
        path: the file, to which nobody may write meanwhile.
        begin: where its bytes begin, counted from the start of the file.
        shape: of the tensor.
        dtype: of the tensor, in the byte order of this machine.

    Raises:
        CheckpointError: when it is read, if the file is gone or another one by then.
    """
    size = int(torch.Size(shape).numel()) * dtype.itemsize
    page = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY

    known = _identity(path.stat())

    def read() -> Tensor:
        if size == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        with _still(path, known) as file:  # private: what is written to it stays in memory
            window = mmap.mmap(file.fileno(), begin - page + size, access=mmap.ACCESS_COPY, offset=page)
        raw = torch.frombuffer(window, dtype=torch.uint8, count=size, offset=begin - page)
        if raw.data_ptr() % _ALIGNED:  # kernels may round differently elsewhere
            raw = raw.clone()
        return raw.view(dtype).view(tuple(shape))

    return OnDemand(shape, dtype, read)


def _identity(about: os.stat_result) -> tuple[int, ...]:
    return about.st_ino, about.st_size, about.st_mtime_ns


@contextmanager
def _still(path: Path, known: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Open a file that is still the one that was checked."""
    reason = "it was written to"
    try:
        with path.open("rb") as file:
            if _identity(os.fstat(file.fileno())) == known:
                yield file
                return
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise CheckpointError(
        f"`{path}` changed while it was read: {reason}. Nothing was written; leave it alone, and try again."
    )


def joined(parts: Iterable[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the tensor that comes in blocks of its first dimension, of which one is held at a time."""
    result, filled = torch.empty(tuple(shape), dtype=dtype), 0
    for part in parts:
        if not part.dim():
            return part
        result[filled : filled + len(part)] = part
        filled += len(part)
    return result


def is_on_demand(model: nn.Module) -> bool:
    """Return whether any parameter of the model is read when it is used."""
    return any(isinstance(parameter, OnDemand) for parameter in model.parameters())


def _changes_dtype_only(kwargs: dict[str, Any]) -> bool:
    device, layout = kwargs.get("device"), kwargs.get("layout")
    return (device is None or torch.device(device).type == "cpu") and layout in (None, torch.strided)


def _cast(tensor: OnDemand, dtype: torch.dtype) -> OnDemand:
    read = tensor.read
    return OnDemand(tensor.shape, dtype, lambda: read().to(dtype))


def _filled(tensor: OnDemand, dim: int, index: Tensor, value: float) -> OnDemand:
    read, parts = tensor.read, tensor.read_parts
    tensor.read, tensor.read_columns = lambda: read().index_fill_(dim, index, value), None
    if parts is not None:
        tensor.read_parts = lambda: _parts_filled(parts(), dim % tensor.dim(), index, value)
    return tensor


def _parts_filled(parts: Iterable[Tensor], dim: int, index: Tensor, value: float) -> Iterator[Tensor]:
    begin = 0
    for part in parts:
        end = begin + len(part)
        within = index[(begin <= index) & (index < end)] - begin if dim == 0 else index
        yield part.index_fill_(dim, within, value)
        begin = end


def _turned(tensor: OnDemand, parts: ReadParts) -> OnDemand:
    read = tensor.read
    turned = OnDemand(tuple(reversed(tensor.shape)), tensor.dtype, lambda: read().t())
    turned.read_columns = lambda: (part.t() for part in parts())
    return turned


def _by_columns(func: Any, others: Sequence[Tensor], width: int, columns: ReadParts) -> Tensor:
    """Return a matrix product, which is computed for some columns of the weight at a time."""
    *added, data = (each.read() if isinstance(each, OnDemand) else each for each in others)
    result, begin = data.new_empty((len(data), width)), 0
    for part in columns():
        end = begin + part.shape[1]
        sliced = (each[..., begin:end] if each.shape[-1:] == (width,) else each for each in added)
        result[:, begin:end] = func(*sliced, data, part)
        begin = end
    return result


def _refuse_writing(func: Any, args: Any, kwargs: Any) -> None:
    """Raise instead of losing what is written: it would go to what was read, which is let go of."""
    arguments = func._schema.arguments
    given = [
        *zip(arguments, args, strict=False),
        *((a, kwargs[a.name]) for a in arguments if a.name in kwargs),
    ]
    for argument, value in given:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and any(isinstance(leaf, OnDemand) for leaf in tree_leaves(value)):
            raise RuntimeError(
                f"`{func}` writes to a parameter that is read from its file at each use (`--streaming`)"
            )
