"""Runs operations on tensors without data, and each kind of call only once.

What torch does on the meta device is written in Python, and costs more than everything else in a trace.
Networks repeat themselves, so the second time, results are made anew from what came out the first time:

    the same operation on the same shapes, with the same numbers          the same results
    the same operation on other shapes, where there is a formula for      results by the formula, if it
    them (`shapes.py`)                                                    was right the first time

A formula says nothing of operands that do not fit together: those run, and fail as they do in torch. Whether
it was right is remembered as long as the process lives; results, as long as one network is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunecli.graph.shapes import Formula, Shapes, formula_of

Key: TypeAlias = tuple[Any, ...]
Maker: TypeAlias = Callable[[], Any]

_PLAIN_TENSORS = frozenset({Tensor, nn.Parameter})
_PLAIN_VALUES = frozenset(
    {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
_INTEGERS = frozenset({int})

_NEW: tuple[torch.dtype, ...] = (torch.complex128,)
"""Stands for a kind of call that has not been met; told by identity."""


class MetaKernels:
    """Remembers what operations return on the meta device.

    Only what depends on nothing else is remembered: the operation is functional by its schema (or writes
    its first operand and returns it), the operands are plain tensors on the meta device, everything else it
    is given are plain values, and all it returns are new tensors. Anything else runs.
    """

    def __init__(self) -> None:
        self._results: dict[Key, Maker] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, or return new tensors like those it returned before."""
        kind = _KINDS.get(id(func)) or _kind_of(func)
        if kind.formula is not None and not kwargs:
            found = _by_formula(func, kind, kind.formula, args)
            if found is not None:
                return found
        if not kind.is_functional:
            return func(*args, **kwargs)
        key = _key_of(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        known = self._results.get(key)
        if known is not None:
            return known()
        out = func(*args, **kwargs)
        maker = _maker_of(out, args)
        if maker is not None:
            self._results[key] = maker
        return out


@dataclass(frozen=True, eq=False)
class _Kind:
    """What is known of an operation."""

    func: Any
    """The operation itself: held, so that its id stays its own."""
    is_functional: bool
    """Whether it only reads its operands and returns new tensors."""
    writes_first: bool
    """Whether it writes its first operand, returns it, and does nothing else."""
    formula: Formula | None
    believed: dict[Key, tuple[torch.dtype, ...] | None]
    """Kinds of calls that ran once -> types of the results; None where the formula was wrong."""


_KINDS: dict[int, _Kind] = {}
"""What is known of operations, by identity: it is torch's and holds for every network."""


def _kind_of(func: Any) -> _Kind:
    """Return what the schema of an operation says."""
    arguments, returns = func._schema.arguments, func._schema.returns
    is_functional = all(each.alias_info is None for each in (*arguments, *returns))
    written = [place for place, each in enumerate(arguments) if each.alias_info is not None]
    writes_first = (
        written == [0]
        and len(returns) == 1
        and returns[0].alias_info is not None
        and returns[0].alias_info.is_write
        and torch.Tag.inplace_view not in func.tags
    )
    formula = formula_of(func) if is_functional or writes_first else None
    found = _KINDS[id(func)] = _Kind(func, is_functional, writes_first, formula, {})
    return found


def _by_formula(func: Any, kind: _Kind, formula: Formula, args: tuple[Any, ...]) -> Any:
    """Return results, or None where the formula does not apply or has been wrong."""
    key = _rough_key(args, formula.free)
    if key is None or (kind.writes_first and not _is_alone(args)):
        return None
    dtypes = kind.believed.get(key, _NEW)
    if dtypes is None:
        return None
    shapes = formula.shapes(*args)
    if shapes is None:
        return None
    if dtypes is _NEW:
        out = func(*args)
        kind.believed[key] = _dtypes_if_right(out, shapes, args, kind)
        return out
    if kind.writes_first:
        return args[0] if tuple(shapes[0]) == args[0].shape else None
    if len(shapes) == 1:
        return torch.empty(shapes[0], dtype=dtypes[0], device="meta")
    return tuple(
        [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in zip(shapes, dtypes, strict=True)]
    )


def _rough_key(args: tuple[Any, ...], free: frozenset[int]) -> Key | None:
    """Return all that decides whether a formula holds; None where more than plain values might matter.

    Args:
        args: what the operation is given.
        free: the places of arguments that only shapes depend on.
    """
    key: list[Any] = [torch.get_default_dtype()]
    for place, value in enumerate(args):
        kind = type(value)
        if place in free:
            key.append(None)
        elif kind in _PLAIN_TENSORS:
            described = _describe_roughly(value)
            if described is None:
                return None
            key.append(described)
        elif kind in _PLAIN_VALUES:
            key.append(kind)  # 1, 1.0 and True are equal
            key.append(value)
        elif kind is list and _INTEGERS.issuperset(map(type, value)):
            key.append(tuple(value))
        elif not _add((value,), key, _describe_roughly):
            return None
    return tuple(key)


def _key_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
    """Return all that the result depends on, or None where more than plain values might matter."""
    key: list[Any] = [id(func), torch.get_default_dtype()]
    if not _add(args, key, _describe_exactly):
        return None
    for name, value in kwargs.items():
        key.append(name)
        if not _add((value,), key, _describe_exactly):
            return None
    return tuple(key)


def _add(values: Iterable[Any], key: list[Any], describe: Callable[[Tensor], Key | None]) -> bool:
    """Add values to a key; return whether all of them could be."""
    for value in values:
        kind = type(value)
        if kind in _PLAIN_TENSORS:
            described = describe(value)
            if described is None:
                return False
            key.append(described)
        elif kind in _PLAIN_VALUES:
            key.append(kind)  # 1, 1.0 and True are equal
            key.append(value)
        elif kind is list or kind is tuple:
            key.append(kind)
            key.append(len(value))
            if not _add(value, key, describe):
                return False
        else:
            return False
    return True


def _describe_exactly(tensor: Tensor) -> Key | None:
    if not tensor.is_meta or tensor.layout is not torch.strided or tensor.is_complex():
        return None
    return tensor.shape, tensor.stride(), tensor.dtype


def _describe_roughly(tensor: Tensor) -> Key | None:
    """Return what formulas do not know of, for tensors in the usual order and matrices turned over."""
    dtype = tensor.dtype
    if not tensor.is_meta or tensor.layout is not torch.strided or dtype.is_complex:
        return None
    is_turned = not tensor.is_contiguous()
    if is_turned and not (tensor.dim() == 2 and tensor.t().is_contiguous()):
        return None
    return dtype, is_turned, *[length if length < 2 else 2 for length in tensor.shape]


def _is_alone(args: tuple[Any, ...]) -> bool:
    """Return whether the first operand shares its memory with none of the others."""
    own, *others = (arg.untyped_storage()._cdata for arg in args if isinstance(arg, Tensor))
    return own not in others


def _dtypes_if_right(out: Any, shapes: Shapes, args: Sequence[Any], kind: _Kind) -> tuple[Any, ...] | None:
    """Return the types of results, or None if they are not what the formula says."""
    if kind.writes_first:
        return () if out is args[0] and out.shape == tuple(shapes[0]) else None
    results = [out] if isinstance(out, Tensor) else list(out)
    blanks = [_blank_of(each, args) if isinstance(each, Tensor) else None for each in results]
    if len(blanks) != len(shapes):
        return None
    dtypes = []
    for blank, shape in zip(blanks, shapes, strict=True):
        if blank is None or blank.shape != tuple(shape) or blank.stride != blank.make_plain().stride():
            return None
        dtypes.append(blank.dtype)
    return tuple(dtypes)


@dataclass(frozen=True)
class _Blank:
    """What is known of a tensor without data."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """Return a new tensor like it."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")

    def make_plain(self) -> Tensor:
        """Return a new tensor like it, with its elements in the usual order."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def _maker_of(out: Any, given: Iterable[Any]) -> Maker | None:
    """Return a function that makes such results, or None if they are not all new and plain."""
    if isinstance(out, Tensor):
        blank = _blank_of(out, given)
        return None if blank is None else blank.make
    if type(out) not in (tuple, list):
        return None
    kind, blanks = type(out), []
    for each in out:
        blank = _blank_of(each, given) if isinstance(each, Tensor) else None
        if blank is None and each is not None:
            return None
        blanks.append(blank)
    return lambda: kind([None if blank is None else blank.make() for blank in blanks])


def _blank_of(tensor: Tensor, given: Iterable[Any]) -> _Blank | None:
    is_plain = type(tensor) is Tensor and tensor.is_meta and tensor.layout is torch.strided
    if (
        not is_plain
        or tensor.is_complex()
        or tensor.storage_offset()
        or any(tensor is each for each in given)
    ):
        return None
    return _Blank(tensor.shape, tensor.stride(), tensor.dtype)
