"""Follows every operation of a forward pass and collects what it says about atoms.

The tracer is a dispatch mode: it sees ATen calls, so functional code, views, einsum and raw
parameters need no rule of their own. Per tensor it keeps a label per dimension (`constraints.py`)
and what the tensor was made of (`Flow`); `rules/` says how each operation carries them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from prunecli.graph.alike import OF_TRACER, Kinds
from prunecli.graph.call import SIZE_TAKING, Call, tensors_given
from prunecli.graph.constraints import IS_OUTPUT, UNIFORM, Atoms, Constraints, Labels, Reason
from prunecli.graph.findings import Findings, Flow, Path, Tag, label_arrays
from prunecli.graph.kernels import MetaKernels
from prunecli.graph.outputs import tensors_in
from prunecli.graph.shortcuts import SHORTCUTS

OPAQUE: Final = (nn.RNNBase,)
"""Modules that are not looked into: their kernels are fused, and differ from device to device."""

COPYING: Final = frozenset({"clone", "copy", "_to_copy", "_unsafe_view", "contiguous", "empty", "empty_like"})
"""Operations that kernels leave out or put in as sizes suit them."""


class OperationError(Exception):
    """An operation failed while it was traced; carries what its operands were labelled with."""

    def __init__(self, op: str, module: str, operands: list[Atoms], message: str) -> None:
        super().__init__(message)
        self.op, self.module, self.operands, self.message = op, module, operands, message


class Tracer(TorchDispatchMode):
    """Runs a forward pass and records constraints and findings.

    Args:
        constraints: what is known so far; the tracer adds to it.
        tensors: parameters and buffers by name, on the device of the pass.
        labels: their labels, by the same names.
        parameters: which of the names are parameters.
        kernels: what runs operations; tracers of one network share it.
    """

    takes_shortcuts = True
    """Whether operations may be followed without `execute` and `finish`."""
    skips_repeats = True
    """Whether a block that repeats another may be answered for, instead of running."""

    def __init__(
        self,
        constraints: Constraints,
        tensors: Mapping[str, Tensor],
        labels: Mapping[str, Labels],
        parameters: Iterable[str],
        kernels: MetaKernels | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.constraints = constraints
        self.kernels = kernels or MetaKernels()
        self.findings = Findings()
        self.tensors = tensors
        self.device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        self.modules: list[str] = [""]
        self.kinds = Kinds()
        self.blocks: dict[str, int] = {}
        """Modules that have their like in the model -> a number for their kind."""
        self.sizes_are_torchs = False
        """Whether a function runs that works out sizes by itself."""
        self._seen = _SeenTensors()
        self._opaque = 0
        weights = set(parameters)
        for name, tensor in tensors.items():
            seen = self._seen.of(tensor)
            seen.name = name
            seen.tag = Tag(labels[name], Flow(parameters=frozenset({name} & weights)))

    @property
    def module(self) -> str:
        """The innermost module whose forward is running."""
        return self.modules[-1]

    @property
    def path(self) -> Path:
        """What the running module did so far."""
        found = self.findings.path.get(self.modules[-1])
        if found is None:
            found = self.findings.path[self.modules[-1]] = Path()
        return found

    def enter(self, name: str, module: nn.Module) -> None:
        """Note that the forward of a module begins."""
        self.modules.append(name)
        self._opaque += isinstance(module, OPAQUE)

    def leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Note that it ended. Whatever an opaque module touched is frozen."""
        if isinstance(module, OPAQUE):
            self._opaque -= 1
            self._freeze_around(module, inputs, outputs)
        self.modules.pop()

    def _freeze_around(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        kind = type(module).__name__
        reason = Reason(f"goes through `{kind}`, which runs as fused kernels", self.module, kind.lower())
        for tensor in [*module.parameters(), *tree_leaves(inputs)]:
            if isinstance(tensor, Tensor):
                tag = self.tag_of(tensor)
                self.read_raw(tag.flow.open_sites)
                for atoms in label_arrays(tag.labels):
                    self.constraints.freeze(atoms, reason)
                if (name := self.name_of(tensor)) is not None:
                    self.findings.used.setdefault(name, self.module)
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self.tag_input(tensor)

    def follow(self, modules: Iterable[tuple[str, nn.Module]]) -> AbstractContextManager[None]:
        """Keep track of the module whose forward runs, among these, while the context lasts."""
        return _ModuleStack(self, modules)

    def tag_input(self, tensor: Tensor) -> None:
        """Mark a tensor as data: nothing of it can be removed."""
        self.tag(tensor, Tag((None,) * tensor.dim(), Flow(from_data=True)))

    def tag(self, tensor: Tensor, tag: Tag) -> None:
        """Say what is known of a tensor."""
        self._seen.of(tensor).tag = tag

    def tag_of(self, tensor: Tensor) -> Tag:
        """Return what is known of a tensor; a constant nobody has seen is unlabelled."""
        seen = self._seen.find(tensor)
        return Tag((None,) * tensor.dim()) if seen is None or seen.tag is None else seen.tag

    def name_of(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter or buffer."""
        seen = self._seen.find(tensor)
        return None if seen is None else seen.name

    def seen(self, tensor: Tensor) -> Seen | None:
        """Return all that is known of a tensor, or None if nobody has seen it."""
        return self._seen.find(tensor)

    def read_raw(self, sites: frozenset[str]) -> None:
        """Note that these gate sites reach a reader with no affine layer in between."""
        self.findings.gated |= sites

    def freeze_scale(self, query: Tensor) -> None:
        """Freeze the head size of an attention that takes its scale from it."""
        reason = Reason("is the head size that attention takes its scale from", self.module, "sdpa")
        label = self.tag_of(query).labels[-1]
        if isinstance(label, np.ndarray):
            self.constraints.freeze(label, reason)

    def note_numbers(self, values: object) -> None:
        """Note numbers that enter the arithmetic as a tensor."""
        numbers = [float(leaf) for leaf in tree_leaves(values) if isinstance(leaf, (int, float))]
        self.path.scalars.extend(numbers)

    def close(self, outputs: object) -> None:
        """Freeze every dimension of the outputs: they are what the user asked the network for."""
        for output in tensors_in(outputs):
            tag = self.tag_of(output)
            self.read_raw(tag.flow.open_sites)
            self.findings.outputs |= tag.flow.open_sites
            picked = () if tag.picked_from is None else (tag.picked_from,)
            for atoms in (*label_arrays(tag.labels), *picked):
                self.constraints.freeze(atoms, Reason(IS_OUTPUT, expected=True))

    def execute(self, call: Call) -> Any:
        """Run the operation itself."""
        return self.kernels.run(call.func, call.args, call.kwargs)

    def finish(self, call: Call) -> None:
        """Do what is left to do once the results are labelled: nothing, here."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        shortcut = SHORTCUTS.get(func)
        if shortcut is not None and self.takes_shortcuts and not self._opaque:
            out = shortcut(self, func, args, kwargs)
            if out is not None:
                return out
        operands = tensors_given(args, kwargs)
        if not _is_on_one_device(operands):
            args, kwargs = _on_one_device(args, kwargs)
            operands = tensors_given(args, kwargs)
        if self._opaque:
            return func(*args, **kwargs)
        call = Call(self, func, args, kwargs, operands)
        rule = call.rule()
        if rule is None:
            with self:
                parts = _decompose(func, args, kwargs)
            if parts is not NotImplemented:
                return parts
        try:
            call.out = self.execute(call)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if not call.operands:
                raise
            labels = [atoms for t in call.operands for atoms in label_arrays(self.tag_of(t).labels)]
            raise OperationError(call.name, self.module, labels, str(error).splitlines()[0]) from error
        self._note_use(call)
        path = self.path
        path.scalars += call.scalars()
        if not call.makes_view and call.name not in COPYING:
            path.operations.append(call.name)
        grids = len(self.constraints.grids)
        (rule or freeze_all)(call)
        if len(self.constraints.grids) > grids and call.name != "convolution":
            self.findings.is_sized = True
        self.finish(call)
        return call.out

    def set_tag(self, call: Call, tensor: Tensor, tag: Tag) -> None:
        """Attach labels to a result and note the sizes that the running module has seen."""
        labels = tuple(
            None if length == 1 else label for length, label in zip(tensor.shape, tag.labels, strict=True)
        )
        seen = self._seen.of(tensor)
        seen.tag = Tag(labels, tag.flow, tag.picked_from)
        if call.makes_view:
            for operand in call.operands:
                source = self._seen.of(operand)
                source.is_aliased = seen.is_aliased = True
                if tensor is not operand:
                    seen.root = operand if source.root is None else source.root
        given = call.name in SIZE_TAKING
        for label in labels:
            if isinstance(label, np.ndarray):
                self.findings.note_size(self.modules[-1], label, given=given)
                self.findings.is_sized |= given and not self.sizes_are_torchs

    def is_aliased(self, tensor: Tensor) -> bool:
        """Return whether a view shares this tensor's memory, as far as the trace has seen."""
        seen = self._seen.find(tensor)
        return seen is not None and seen.is_aliased

    def note_write(self, part: Tensor, flow: Flow) -> None:
        """Note that a part of a tensor was written: what was the same everywhere no longer is."""
        seen = self._seen.find(part)
        root = None if seen is None else seen.root
        if root is None:
            return
        tag = self.tag_of(root)
        labels = tag.labels
        if root.shape != part.shape:
            labels = tuple(None if label is UNIFORM else label for label in labels)
        from_data = tag.flow.from_data or flow.from_data
        parameters = frozenset() if from_data else tag.flow.parameters | flow.parameters
        joined = Flow(from_data, parameters, tag.flow.open_sites | flow.open_sites)
        self.tag(root, Tag(labels, joined, tag.picked_from))

    def _note_use(self, call: Call) -> None:
        for operand in call.operands:
            seen = self._seen.find(operand)
            if seen is None:
                continue
            if seen.name is not None:
                self.findings.used.setdefault(seen.name, self.module)
            if seen.tag is not None and seen.tag.picked_from is not None:
                call.freeze(seen.tag.picked_from, "is searched by position")


class _SeenTensors:
    """What one tracer knows of the tensors it has met, kept on the tensors: it lives as long as they do."""

    def of(self, tensor: Tensor) -> Seen:
        """Return what is known of a tensor, to be added to."""
        seen = self.find(tensor)
        if seen is None:
            seen = Seen(self)
            setattr(tensor, _ON_TENSOR, seen)
        return seen

    def find(self, tensor: Tensor) -> Seen | None:
        """Return what is known of a tensor, or None if nobody has seen it."""
        seen: Seen | None = getattr(tensor, _ON_TENSOR, None)
        return seen if seen is not None and seen.by is self else None


_ON_TENSOR: Final = "_prunecli_seen"


class Seen:
    """What one tracer knows of one tensor. Copies of the tensor know nothing of it."""

    __slots__ = ("by", "is_aliased", "name", "root", "tag")

    def __init__(self, by: _SeenTensors | None) -> None:
        self.by = by
        self.name: str | None = None
        self.tag: Tag | None = None
        self.root: Tensor | None = None
        """The tensor that this one is a view of."""
        self.is_aliased = False

    @property
    def known(self) -> Tag:
        """What is known of it, where anything is."""
        assert self.tag is not None
        return self.tag

    def __reduce__(self) -> tuple[type[Seen], tuple[None]]:
        return Seen, (None,)


class _ModuleStack(AbstractContextManager[None]):
    """Hooks that keep a stack of the modules whose forward is running."""

    def __init__(self, tracer: Tracer, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.tracer, self.modules = tracer, modules
        self.followed: list[nn.Module] = []

    def __enter__(self) -> None:
        for name, module in self.modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            self.followed.append(module)
            module._forward_pre_hooks[OF_TRACER] = self._enter(name)
            module._forward_hooks[OF_TRACER] = self.tracer.leave

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self.followed:
            module._forward_pre_hooks.pop(OF_TRACER, None)
            module._forward_hooks.pop(OF_TRACER, None)

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda module, _: self.tracer.enter(name, module)


def _decompose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation as the simpler ones it is made of, if torch knows them."""
    if func in decomposition_table:
        return decomposition_table[func](*args, **kwargs)
    return func.decompose(*args, **kwargs)


def _is_on_one_device(tensors: list[Tensor]) -> bool:
    return all(tensor.is_meta for tensor in tensors) or not any(tensor.is_meta for tensor in tensors)


def _on_one_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move constants that code made on the CPU to the meta device, where they meet tensors without data."""
    args, kwargs = tree_map_only(
        Tensor, lambda t: t if t.is_meta or t.dim() == 0 else t.to("meta"), (args, kwargs)
    )
    return args, kwargs


def freeze_all(call: Call) -> None:
    """Freeze whatever an unknown operation touches."""
    call.tracer.findings.unknown.setdefault(call.name, call.tracer.module)
    for operand in call.operands:
        call.tracer.read_raw(call.flow(operand).open_sites)
        for label in call.labels(operand):
            call.freeze(label, f"goes through `{call.name}`, which has no rule")
    from_data = any(call.flow(operand).from_data for operand in call.operands)
    for result in call.results():
        call.put((None,) * result.dim(), flow=Flow(from_data=from_data), tensor=result)
