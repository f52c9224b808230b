"""What calls of blocks are given, and whether they can differ by anything but atoms and names."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.graph.alike import PLAIN
from prunecli.graph.constraints import FROZEN_ATOM, Atoms
from prunecli.graph.copying import walk
from prunecli.graph.findings import Tag
from prunecli.graph.recording import Given, Sites
from prunecli.graph.surroundings import Surroundings
from prunecli.graph.tracer import Seen, Tracer

Key = tuple[Hashable, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """A module that has its like in the model."""

    name: str
    module: nn.Module
    kind: int
    owned: Sequence[tuple[str, Tensor]]
    """Its tensors, with their names in it."""
    shared: tuple[tuple[str, str], ...]
    """Modules in it that have another name before, as in `shared_inside`."""
    surroundings: Surroundings


@dataclass(frozen=True, eq=False)
class BlockCall:
    """What a block is called with: equal keys say that nothing but atoms and names can differ."""

    key: Key
    given: Given
    seen: Sequence[Seen]
    """What is known of the block's tensors, then of its inputs."""
    inputs: Sequence[Tensor]
    roots: Sequence[Tensor]
    """What inputs are views of, where that is no input itself."""
    values: Key
    """The part of the key that describes the arguments."""


def look(tracer: Tracer, block: Block, arguments: tuple[Any, ...]) -> BlockCall | None:
    """Return what a call is given, or None where it cannot be said of others, nor what others said of it."""
    values: list[Any] = []
    inputs: list[Tensor] = []
    if not _describe_values(arguments, values, inputs):
        return None
    key, known, different = [block.kind, block.shared, block.surroundings.state(), *values], [], _Different()
    for own, tensor in block.owned:
        seen, full = tracer.seen(tensor), f"{block.name}.{own}"
        if seen is None or seen.tag is None or seen.name != full or not _is_of(seen.tag, {full}):
            return None
        known.append(seen)
        key += (own, bool(seen.tag.flow.parameters), seen.is_aliased, different.describe(seen.tag))
    sources = {id(tensor): tensor for tensor in inputs}  # and what they are views of
    count = len(sources)
    for tensor in inputs:
        seen = tracer.seen(tensor)
        if seen is None or seen.tag is None or seen.name is not None or seen.tag.flow.parameters:
            return None
        if seen.tag.picked_from is not None:
            return None
        known.append(seen)
        if seen.root is not None:
            sources.setdefault(id(seen.root), seen.root)
        root = None if seen.root is None else list(sources).index(id(seen.root))
        key += (seen.is_aliased, root, different.describe(seen.tag))
    if not _are_apart(different.sites, {f"{block.name}.{own}" for own, _ in block.owned}):
        return None
    key.append(_pattern(different.labels))
    outside = frozenset(name for _, name in block.shared if not name.startswith("."))
    given = Given(block.name, different.labels, list(different.sites), outside)
    return BlockCall(tuple(key), given, known, inputs, list(sources.values())[count:], tuple(values))


def _are_apart(sites: Iterable[Sites], own: Set[str]) -> bool:
    """Return whether sets of gate sites have none in common, with each other and with the block's own."""
    return not any(one & other for one, other in combinations([*sites, own], 2))


def is_given_the_same(call: BlockCall, arguments: tuple[Any, ...]) -> bool:
    """Return whether what a call was given still is what it was: no list is longer now."""
    values: list[Any] = []
    inputs: list[Tensor] = []
    is_known = _describe_values(arguments, values, inputs)
    return is_known and tuple(values) == call.values and [*map(id, inputs)] == [*map(id, call.inputs)]


def shared_inside(
    blocks: Mapping[str, nn.Module], modules: Sequence[tuple[str, nn.Module]]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return per block the modules in it that have another name before: name in the block, and that name.

    Names in the block begin with a dot; the other is one if the module comes twice in the block.

    Args:
        blocks: modules by name.
        modules: all modules of the model, by their first name.
    """
    children = sum(child is not None for _, module in modules for child in module._modules.values())
    if children == len(modules) - 1:
        return {}  # a tree: every module has one name
    first = {module: name for name, module in modules}
    found = {}
    for name, block in blocks.items():
        inside = [(f".{own}", first.get(module, "")) for own, module in walk(block, repeated=True) if own]
        known = [(own, other.removeprefix(name) if _is_in(other, name) else other) for own, other in inside]
        found[name] = tuple((own, other) for own, other in known if own != other)
    return found


def _is_in(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


def _is_of(tag: Tag, names: set[str]) -> bool:
    """Return whether a parameter or buffer is still what the model was given."""
    flow = tag.flow
    return not flow.from_data and not flow.open_sites and flow.parameters <= names and tag.picked_from is None


class _Different:
    """The different labels, by identity, and sets of gate sites, in the order in which they come."""

    def __init__(self) -> None:
        self.labels: list[Atoms] = []
        self.sites: dict[Sites, int] = {}
        self._numbers: dict[int, int] = {}

    def describe(self, tag: Tag) -> Hashable:
        """Return what is said of a tensor, with numbers for its labels and sites."""
        parts: list[Hashable] = [tag.flow.from_data]
        for label in tag.labels:
            if not isinstance(label, np.ndarray):
                parts.append(label)
                continue
            number = self._numbers.setdefault(id(label), len(self.labels))
            if number == len(self.labels):
                self.labels.append(label)
            parts.append(number)
        if tag.flow.open_sites:
            parts.append(self.sites.setdefault(tag.flow.open_sites, len(self.sites)))
        return tuple(parts)


def _pattern(labels: Sequence[Atoms]) -> Hashable:
    """Return how labels lie to each other: equal patterns differ by the numbers of atoms alone.

    >>> _pattern([np.array([7, 8]), np.array([8, 9])]) == _pattern([np.array([3, 5]), np.array([5, 4])])
    True
    """
    lengths = tuple(map(len, labels))
    atoms = np.concatenate([np.empty(0, np.int64), *labels])
    places = np.arange(atoms.size)
    last = np.empty(atoms.max(initial=0) + 1, np.int64)
    last[atoms] = places
    if (last[atoms] == places).all() and atoms.all():
        return lengths  # no atom comes twice, and none is frozen
    _, first, inverse = np.unique(atoms, return_index=True, return_inverse=True)
    return lengths, np.where(atoms == FROZEN_ATOM, -1, first[inverse]).tobytes()


def sort_into(blocks: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, list[tuple[str, Tensor]]]:
    """Return the tensors of each block, with their names in it."""
    found: dict[str, list[tuple[str, Tensor]]] = {name: [] for name in blocks}
    for name, tensor in tensors.items():
        end = name.rfind(".")
        while end > 0:
            if name[:end] in found:
                found[name[:end]].append((name[end + 1 :], tensor))
                break
            end = name.rfind(".", 0, end)
    return found


def _describe_values(values: Iterable[Any], key: list[Any], tensors: list[Tensor]) -> bool:
    """Add values to a key, and the tensors among them to a list; return whether all of them could be."""
    for value in values:
        kind = type(value)
        if kind is Tensor:
            if not is_plain(value):
                return False
            tensors.append(value)
            first = next(place for place, each in enumerate(tensors) if each is value)
            key += (value.shape, value.stride(), value.dtype, first)
        elif kind in PLAIN:
            key.extend((kind, value))
        elif kind in (tuple, list, dict):
            key.extend((kind, len(value)))
            parts = [part for item in value.items() for part in item] if kind is dict else value
            if not _describe_values(parts, key, tensors):
                return False
        else:
            return False
    return True


def is_plain(tensor: Tensor) -> bool:
    """Return whether shape, strides and type are all that there is to a tensor without data."""
    is_usual = type(tensor) is Tensor and tensor.is_meta and tensor.layout is torch.strided
    return is_usual and not tensor.storage_offset() and not tensor.is_complex()
