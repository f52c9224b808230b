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
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from prunecli.graph.alike import PLAIN, Override, repeated_blocks
from prunecli.graph.block_calls import (
    Block,
    BlockCall,
    Key,
    is_given_the_same,
    is_plain,
    look,
    shared_inside,
    sort_into,
)
from prunecli.graph.calls import CallWatch, Counts
from prunecli.graph.copying import walk
from prunecli.graph.findings import Findings, Watched
from prunecli.graph.recording import CannotRepeat, Recording, Said
from prunecli.graph.surroundings import Surroundings
from prunecli.graph.tracer import Tracer


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
        self._blocks: list[Block] = []
        self._known: dict[Key, _Known | None] = {}

    def __enter__(self) -> None:
        kinds, blocks = self._tracer.kinds, repeated_blocks(self._modules, self._tracer.kinds)
        self._tracer.blocks = {name: kinds.of(module) for name, module in blocks.items()}
        owned, shared = sort_into(blocks, self._tracer.tensors), shared_inside(blocks, self._modules)
        around: dict[int, Surroundings] = {}
        for name, module in blocks.items():
            kind = kinds.of(module)
            if kind not in around:
                around[kind] = Surroundings(each for _, each in walk(module))
            block = Block(name, module, kind, owned[name], shared.get(name, ()), around[kind])
            self._blocks.append(block)
            vars(module)["forward"] = Override(self._forward, block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for block in self._blocks:
            vars(block.module).pop("forward", None)

    def _forward(self, block: Block, *args: Any, **kwargs: Any) -> Any:
        """Say what the block would say, or run it."""
        with _Aside():
            call = None
            if self._tracer.modules[-1] == block.name and not self._tracer.kinds.has_changed(block.module):
                call = look(self._tracer, block, (args, kwargs))
            known = None if call is None else self._known.get(call.key)
            if call is not None and known is not None:
                return self._repeat(call, known)
        if call is None or call.key in self._known:
            return type(block.module).forward(block.module, *args, **kwargs)
        return self._record(block, call, args, kwargs)

    def _record(self, block: Block, call: BlockCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block, and keep what it said if it can be said again."""
        tracer, watch = self._tracer, self._watch
        constraints, findings = tracer.constraints, tracer.findings
        counts = None if watch is None else watch.so_far
        said = Said(constraints.count, constraints.onwards(), Findings(), Counter())
        before = [(seen.tag, seen.root, seen.is_aliased) for seen in call.seen]
        behind = [self._tracer.tag_of(root) for root in call.roots]
        tracer.constraints, tracer.findings = said.constraints, said.findings
        if watch is not None:
            watch.so_far = said.counts
        attributes, state = vars(block.module), block.surroundings.state()
        override = attributes.pop("forward")
        self._known[call.key] = None
        try:
            outputs = type(block.module).forward(block.module, *args, **kwargs)
            has_changed = tracer.kinds.has_changed(block.module) or block.surroundings.state() != state
        finally:
            attributes["forward"] = override
            tracer.constraints, tracer.findings = constraints, findings
            if watch is not None and counts is not None:
                watch.so_far = counts
            self._add(said)
        with _Aside():
            is_same = all(
                seen.tag is tag and seen.root is root
                for seen, (tag, root, _) in zip(call.seen, before, strict=True)
            )
            is_same &= all(
                self._tracer.tag_of(root) is tag for root, tag in zip(call.roots, behind, strict=True)
            )
            if is_same and not has_changed and is_given_the_same(call, (args, kwargs)):
                flips = (seen.is_aliased > was for seen, (*_, was) in zip(call.seen, before, strict=True))
                aliased = [place for place, flipped in enumerate(flips) if flipped]
                self._known[call.key] = _know(tracer, call, said, outputs, aliased)
        return outputs

    def _repeat(self, call: BlockCall, known: _Known) -> Any:
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
            made.append(tensor)
        sources = (*call.inputs, *made, *call.roots)
        for tensor, root in zip(made, known.roots, strict=True):
            seen = self._tracer.seen(tensor)
            assert seen is not None
            seen.root = None if root is None else sources[root]
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


@dataclass(frozen=True)
class _Result:
    """A tensor that a block made, and put out."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    is_aliased: bool


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor among what was put out: one of the inputs, or behind them one of the results."""

    place: int


@dataclass(frozen=True, eq=False)
class _Known:
    """A call that can be said again."""

    recording: Recording
    results: Sequence[_Result]
    roots: Sequence[int | None]
    """What each is a view of: its place among the inputs, the results and `BlockCall.roots`."""
    leaves: Sequence[Any]
    spec: TreeSpec
    aliased: Sequence[int]
    """Which of `BlockCall.seen` have views from then on."""


def _know(tracer: Tracer, call: BlockCall, said: Said, outputs: Any, aliased: Sequence[int]) -> _Known | None:
    """Return what is needed to say a call again, or None where that is impossible."""
    leaves, spec = tree_flatten(outputs)
    places = {id(tensor): place for place, tensor in enumerate(call.inputs)}
    results: list[_Result] = []
    tags, views = [], []
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            if type(leaf) not in PLAIN:
                return None
            continue
        if id(leaf) not in places:
            seen = tracer.seen(leaf)
            if seen is None or seen.tag is None or seen.name is not None or not is_plain(leaf):
                return None
            places[id(leaf)] = len(call.inputs) + len(results)
            results.append(_Result(leaf.shape, leaf.stride(), leaf.dtype, seen.is_aliased))
            tags.append(seen.tag)
            views.append(seen.root)
        leaves[place] = _Place(places[id(leaf)])
    try:
        recording = Recording(call.given, said, tags)
    except CannotRepeat:
        return None
    places |= {id(root): len(call.inputs) + len(results) + place for place, root in enumerate(call.roots)}
    roots = [None if root is None else places.get(id(root)) for root in views]
    return _Known(recording, results, roots, leaves, spec, aliased)


class _Aside(AbstractContextManager[None]):
    """What is done with tensors meanwhile is nothing that the model does: nobody follows it."""

    def __enter__(self) -> None:
        self._functions = torch._C.DisableTorchFunction()
        self._operations = torch._C._DisableTorchDispatch()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._operations, self._functions
