"""Follows a block of a network once, and says the same of every other that is just like it.

Deep networks are made of alike blocks. While a forward pass is followed, the first call of a block is
recorded (`recording.py`). A later call is not carried out where it could not say anything else: the other
block has the same code, settings and shapes (`alike.py`), it is given tensors of the same shapes, and all
labels lie to each other in the same way. What is said of it is exactly what carrying it out would say.

A block that changes itself, its inputs or its tensors, and one that speaks of anything that it was not
given, is always carried out; so is everything that is not on the meta device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from prunecli.graph.alike import PLAIN, repeated_blocks
from prunecli.graph.calls import CallWatch, Counts
from prunecli.graph.constraints import FROZEN_ATOM, Atoms
from prunecli.graph.findings import Findings, Tag, Watched
from prunecli.graph.recording import CannotRepeat, Given, Recording, Said, Sites
from prunecli.graph.tracer import Seen, Tracer

Key = tuple[Hashable, ...]


class Repeats(AbstractContextManager[None]):
    """Answers for the blocks of a model that repeat others, while the context lasts.

    Args:
        tracer: what follows the pass.
        modules: those of the model, from the root down, by name; nobody else may run it meanwhile.
        watch: who counts the calls of torch functions, if anybody.
    """

    def __init__(
        self, tracer: Tracer, modules: Sequence[tuple[str, nn.Module]], watch: CallWatch | None = None
    ) -> None:
        self._tracer, self._modules, self._watch = tracer, modules, watch
        self._blocks: dict[str, nn.Module] = {}
        self._owned: dict[str, list[tuple[str, Tensor]]] = {}
        self._known: dict[Key, _Known | None] = {}

    def __enter__(self) -> None:
        self._blocks = repeated_blocks(self._modules, self._tracer.kinds)
        self._tracer.blocks = {name: self._tracer.kinds.of(block) for name, block in self._blocks.items()}
        self._owned = _sort_into(self._blocks, self._tracer.tensors)
        for name, block in self._blocks.items():
            vars(block)["forward"] = partial(self._forward, name, block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for block in self._blocks.values():
            vars(block).pop("forward", None)

    def _forward(self, name: str, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Say what the block would say, or run it."""
        with _Aside():
            call = None
            if self._tracer.modules[-1] == name:
                call = _look(self._tracer, name, self._tracer.blocks[name], self._owned[name], (args, kwargs))
            known = None if call is None else self._known.get(call.key)
            if call is not None and known is not None:
                self._tracer.repeated.append(block)
                return self._repeat(call, known)
        if call is None or call.key in self._known:
            return type(block).forward(block, *args, **kwargs)
        return self._record(block, call, args, kwargs)

    def _record(self, block: nn.Module, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block, and keep what it said if it can be said again."""
        tracer, watch = self._tracer, self._watch
        constraints, findings = tracer.constraints, tracer.findings
        counts = None if watch is None else watch.so_far
        said = Said(constraints.count, constraints.onwards(), Findings(), Counter())
        before = [(seen.tag, seen.root, seen.is_aliased) for seen in call.seen]
        tracer.constraints, tracer.findings = said.constraints, said.findings
        if watch is not None:
            watch.so_far = said.counts
        override = vars(block).pop("forward")
        self._known[call.key] = None
        try:
            outputs = type(block).forward(block, *args, **kwargs)
            has_changed = self._tracer.kinds.has_changed(block)
        finally:
            vars(block)["forward"] = override
            tracer.constraints, tracer.findings = constraints, findings
            if watch is not None and counts is not None:
                watch.so_far = counts
            self._add(said)
        with _Aside():
            is_same = all(
                seen.tag is tag and seen.root is root
                for seen, (tag, root, _) in zip(call.seen, before, strict=True)
            )
            if is_same and not has_changed:
                flips = (seen.is_aliased > was for seen, (*_, was) in zip(call.seen, before, strict=True))
                aliased = [place for place, flipped in enumerate(flips) if flipped]
                self._known[call.key] = _know(tracer, call, said, outputs, aliased)
        return outputs

    def _repeat(self, call: _Call, known: _Known) -> Any:
        """Say what was said of another block, and return tensors like those it put out."""
        said, tags = known.recording.repeat(call.given, self._tracer.constraints.count)
        self._add(said)
        for place in known.aliased:
            call.seen[place].is_aliased = True
        made = []
        for result, tag in zip(known.results, tags, strict=True):
            tensor = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
            self._tracer.tag(tensor, tag)
            seen = self._tracer.seen(tensor)
            assert seen is not None
            seen.is_aliased = result.is_aliased
            seen.root = None if result.root is None else call.inputs[result.root]
            made.append(tensor)
        tensors = (*call.inputs, *made)
        leaves = [tensors[each.place] if isinstance(each, _Place) else each for each in known.leaves]
        return tree_unflatten(leaves, known.spec)

    def _add(self, said: Said) -> None:
        """Add what was said of one call to all that was said before."""
        self._tracer.constraints.extend(said.constraints)
        findings = self._tracer.findings
        findings.extend(said.findings)
        if self._watch is not None:
            counts, begin = self._watch.so_far, len(findings.watched) - len(said.findings.watched)
            findings.watched[begin:] = [_counted_on(each, counts) for each in findings.watched[begin:]]
            counts.update(said.counts)


def _counted_on(watched: Watched, counts: Counts) -> Watched:
    """Count calls from those that were made in a module before."""
    call = watched.call
    before = counts[call.module, call.function]
    return replace(watched, call=replace(call, nth=call.nth + before)) if before else watched


@dataclass(frozen=True, eq=False)
class _Call:
    """What a block is called with: equal keys say that nothing but atoms and names can differ."""

    key: Key
    given: Given
    seen: Sequence[Seen]
    """What is known of the block's tensors, then of its inputs."""
    inputs: Sequence[Tensor]


@dataclass(frozen=True)
class _Result:
    """A tensor that a block made, and put out."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    is_aliased: bool
    root: int | None
    """The input that it is a view of."""


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor among what was put out: one of the inputs, or behind them one of the results."""

    place: int


@dataclass(frozen=True, eq=False)
class _Known:
    """A call that can be said again."""

    recording: Recording
    results: Sequence[_Result]
    leaves: Sequence[Any]
    spec: TreeSpec
    aliased: Sequence[int]
    """Which of `_Call.seen` have views from then on."""


def _sort_into(blocks: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, list[tuple[str, Tensor]]]:
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


def _look(
    tracer: Tracer, name: str, kind: int, owned: Iterable[tuple[str, Tensor]], arguments: tuple[Any, ...]
) -> _Call | None:
    """Return what a call is given, or None where it cannot be said of others, nor what others said of it."""
    key: list[Any] = [kind]
    inputs: list[Tensor] = []
    if not _describe_values(arguments, key, inputs):
        return None
    known, different = [], _Different()
    for own, tensor in owned:
        seen, full = tracer.seen(tensor), f"{name}.{own}"
        if seen is None or seen.tag is None or seen.name != full or not _is_of(seen.tag, {full}):
            return None
        known.append(seen)
        key += (own, bool(seen.tag.flow.parameters), seen.is_aliased, different.describe(seen.tag))
    for tensor in inputs:
        seen = tracer.seen(tensor)
        if seen is None or seen.tag is None or seen.name is not None or seen.tag.flow.parameters:
            return None
        if seen.tag.picked_from is not None:
            return None
        known.append(seen)
        key += (seen.is_aliased, different.describe(seen.tag))
    sites = list(different.sites)
    if any(one & other for one, other in combinations(sites, 2)):
        return None
    key.append(_pattern(different.labels))
    return _Call(tuple(key), Given(name, different.labels, sites), known, inputs)


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


def _know(tracer: Tracer, call: _Call, said: Said, outputs: Any, aliased: Sequence[int]) -> _Known | None:
    """Return what is needed to say a call again, or None where that is impossible."""
    leaves, spec = tree_flatten(outputs)
    places = {id(tensor): place for place, tensor in enumerate(call.inputs)}
    inputs, results, tags = dict(places), [], []
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            if type(leaf) not in PLAIN:
                return None
            continue
        if id(leaf) not in places:
            seen = tracer.seen(leaf)
            if seen is None or seen.tag is None or seen.name is not None or not _is_plain(leaf):
                return None
            places[id(leaf)] = len(places)
            root = None if seen.root is None else inputs.get(id(seen.root))
            results.append(_Result(leaf.shape, leaf.stride(), leaf.dtype, seen.is_aliased, root))
            tags.append(seen.tag)
        leaves[place] = _Place(places[id(leaf)])
    try:
        return _Known(Recording(call.given, said, tags), results, leaves, spec, aliased)
    except CannotRepeat:
        return None


def _describe_values(values: Iterable[Any], key: list[Any], tensors: list[Tensor]) -> bool:
    """Add values to a key, and the tensors among them to a list; return whether all of them could be."""
    for value in values:
        kind = type(value)
        if kind is Tensor:
            if not _is_plain(value):
                return False
            tensors.append(value)
            key += (value.shape, value.stride(), value.dtype)
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


def _is_plain(tensor: Tensor) -> bool:
    is_usual = type(tensor) is Tensor and tensor.is_meta and tensor.layout is torch.strided
    return is_usual and not tensor.storage_offset() and not tensor.is_complex()


class _Aside(AbstractContextManager[None]):
    """What is done with tensors meanwhile is nothing that the model does: nobody follows it."""

    def __enter__(self) -> None:
        self._functions = torch._C.DisableTorchFunction()
        self._operations = torch._C._DisableTorchDispatch()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._operations, self._functions
