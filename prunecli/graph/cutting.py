"""Structure + kept units -> a smaller copy of the module: tensors sliced, attributes set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunecli.graph.copying import copy_module, duplicate, named_tensors, walk
from prunecli.graph.structure import Axis, Kept, Structure
from prunecli.graph.twins import install
from prunecli.on_demand import OnDemand, ReadParts, joined

AttributeValues: TypeAlias = dict[str, dict[str, "int | tuple[int, ...] | list[int]"]]


def cut(
    model: nn.Module,
    structure: Structure,
    kept: Kept,
    weights: Callable[[str, Tensor], Tensor] | None = None,
    constant: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """Return a copy of `model` without the units that are not kept; `model` is untouched.

    Each tensor is sliced once per axis and owns its memory. The copy has the mode, the devices and
    the `requires_grad` of the model. With `weights` (and `constant`, see `copy_module`), it is the cut of a
    model that has other tensors, of which one at a time is made.
    """
    staying = _Staying(kept)

    def part(name: str, tensor: Tensor) -> Tensor:
        return _slice(weights(name, tensor) if weights else tensor, name, structure, staying)

    smaller = copy_module(model, part, constant)
    install(smaller, {n: t for n, t in structure.rewritten.items() if not _is_twin(smaller, n, t)})
    modules = dict(walk(smaller))
    for name, values in _attribute_values(structure, staying, modules).items():
        for attribute, value in values.items():
            setattr(modules[name], attribute, value)
    return smaller


def slice_tensor(tensor: Tensor, name: str, structure: Structure, kept: Kept) -> Tensor:
    """Return a contiguous tensor of the positions that stay; a clone where nothing goes.

    What is left of a tensor that is read on demand is read and cut on demand.
    """
    return _slice(tensor, name, structure, _Staying(kept))


class _Staying:
    """Which positions of axes stay under one plan, found once per axis."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self._found: dict[int, tuple[Axis, NDArray[np.int64] | None]] = {}

    def of(self, axis: Axis) -> NDArray[np.int64] | None:
        """Return the positions that stay, or None where all do."""
        found = self._found.get(id(axis))
        if found is None:
            stays = axis.kept(self.kept)
            found = self._found[id(axis)] = (axis, None if stays.all() else np.flatnonzero(stays))
        return found[1]


def _slice(tensor: Tensor, name: str, structure: Structure, staying: _Staying) -> Tensor:
    result, is_new = tensor.detach(), False
    described = structure.tensors.get(name)
    if isinstance(tensor, OnDemand) and described is not None and described.shape == tuple(tensor.shape):
        lengths = (
            n if axis is None else axis.kept_length(staying.kept)
            for n, axis in zip(tensor.shape, described.axes, strict=True)
        )
        left, read, parts = tuple(lengths), tensor.read, tensor.read_parts
        if parts is not None:
            masks = [None if axis is None else axis.kept(staying.kept) for axis in described.axes]
            sliced = partial(_slice_parts, parts, masks)
            return OnDemand(left, tensor.dtype, lambda: joined(sliced(), left, tensor.dtype), sliced)
        return OnDemand(left, tensor.dtype, lambda: _slice(read(), name, structure, staying))
    if described is None or described.shape != tuple(tensor.shape):
        return duplicate(result)
    shape = list(described.shape)
    for dim, axis in enumerate(described.axes):
        positions = None if axis is None else staying.of(axis)
        if positions is not None:
            shape[dim] = len(positions)
            if not result.is_meta:
                result = result.index_select(dim, torch.from_numpy(positions).to(result.device))
            is_new = True
    if is_new and result.is_meta:
        return torch.empty(shape, dtype=result.dtype, device="meta")
    return result if is_new else duplicate(result)


def _slice_parts(parts: ReadParts, stays: Sequence[NDArray[np.bool_] | None]) -> Iterator[Tensor]:
    """Yield what stays of a tensor that comes in blocks of its first dimension, one of them at a time."""
    begin = 0
    for part in parts():
        rows = stays[0] if stays[0] is None else stays[0][begin : begin + len(part)]
        begin += len(part)
        for dim, each in enumerate([rows, *stays[1:]]):
            if each is not None and not each.all():
                part = part.index_select(dim, torch.from_numpy(np.flatnonzero(each)))  # noqa: PLW2901
        yield part


def slice_masks(masks: Mapping[str, Tensor], structure: Structure, kept: Kept) -> dict[str, Tensor]:
    """Return masks over weights (parameter -> a bool per weight) for what stays of each parameter."""
    return {name: slice_tensor(mask, name, structure, kept) for name, mask in masks.items()}


def attribute_values(structure: Structure, kept: Kept, model: nn.Module) -> AttributeValues:
    """Return what the int attributes of modules become: module -> attribute -> value.

    Only attributes whose value changes are listed; entries of tuples are gathered into the whole tuple.
    """
    return _attribute_values(structure, _Staying(kept), dict(walk(model)))


def _attribute_values(
    structure: Structure, staying: _Staying, modules: Mapping[str, nn.Module]
) -> AttributeValues:
    values: AttributeValues = {}
    for each in structure.attributes:
        positions = staying.of(each.axis)
        if positions is None:
            continue
        length = len(positions)
        changed = values.setdefault(each.module, {})
        if each.entry is None:
            changed[each.name] = length
        else:
            current = changed.get(each.name, getattr(modules[each.module], each.name))
            entries = list(current)
            entries[each.entry] = length
            changed[each.name] = entries if isinstance(current, list) else tuple(entries)
    return values


def tensors_fit(model: nn.Module, structure: Structure) -> bool:
    """Return whether the parameters of `model` have the shapes that the structure was found on.

    Buffers may differ: some get their size in the first forward pass.
    """
    found = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    return all(found.get(name) == each.shape for name, each in structure.parameters())


def _is_twin(model: nn.Module, name: str, twin: str) -> bool:
    return type(model.get_submodule(name)).__name__ == twin
