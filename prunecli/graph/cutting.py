"""Structure + kept units -> a smaller copy of the module: tensors sliced, attributes set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.graph.copying import copy_module, named_tensors
from prunecli.graph.structure import Kept, Structure
from prunecli.graph.twins import install
from prunecli.on_demand import OnDemand

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

    def part(name: str, tensor: Tensor) -> Tensor:
        return slice_tensor(weights(name, tensor) if weights else tensor, name, structure, kept)

    smaller = copy_module(model, part, constant)
    install(smaller, {n: t for n, t in structure.rewritten.items() if not _is_twin(smaller, n, t)})
    for module, values in attribute_values(structure, kept, smaller).items():
        for attribute, value in values.items():
            setattr(smaller.get_submodule(module), attribute, value)
    return smaller


def slice_tensor(tensor: Tensor, name: str, structure: Structure, kept: Kept) -> Tensor:
    """Return a contiguous tensor of the positions that stay; a clone where nothing goes.

    What is left of a tensor that is read on demand is read and cut on demand.
    """
    result = tensor.detach()
    described = structure.tensors.get(name)
    if isinstance(tensor, OnDemand) and described is not None and described.shape == tuple(tensor.shape):
        lengths = (
            n if axis is None else axis.kept_length(kept)
            for n, axis in zip(tensor.shape, described.axes, strict=True)
        )
        read = tensor.read
        return OnDemand(tuple(lengths), tensor.dtype, lambda: slice_tensor(read(), name, structure, kept))
    if described is None or described.shape != tuple(tensor.shape):
        return result.clone()
    for dim, axis in enumerate(described.axes):
        if axis is not None:
            stays = axis.kept(kept)
            if not stays.all():
                result = result.index_select(dim, torch.from_numpy(np.flatnonzero(stays)).to(result.device))
    return result.clone() if result.data_ptr() == tensor.data_ptr() else result


def slice_masks(masks: Mapping[str, Tensor], structure: Structure, kept: Kept) -> dict[str, Tensor]:
    """Return masks over weights (parameter -> a bool per weight) for what stays of each parameter."""
    return {name: slice_tensor(mask, name, structure, kept) for name, mask in masks.items()}


def attribute_values(structure: Structure, kept: Kept, model: nn.Module) -> AttributeValues:
    """Return what the int attributes of modules become: module -> attribute -> value.

    Only attributes whose value changes are listed; entries of tuples are gathered into the whole tuple.
    """
    values: AttributeValues = {}
    for each in structure.attributes:
        length = each.axis.kept_length(kept)
        if length == each.axis.length:
            continue
        changed = values.setdefault(each.module, {})
        if each.entry is None:
            changed[each.name] = length
        else:
            current = changed.get(each.name, getattr(model.get_submodule(each.module), each.name))
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
