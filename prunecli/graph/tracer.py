"""Follows every operation of a forward pass and collects what it says about atoms.

The tracer is a dispatch mode: it sees ATen calls, so functional code, views, einsum and raw
parameters need no rule of their own. Per tensor it keeps a label per dimension (`constraints.py`)
and what the tensor was made of (`Flow`); `rules/` says how each operation carries them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from prunecli.graph.constraints import IS_OUTPUT, UNIFORM, Atoms, Constraints, Label, Labels, Reason
from prunecli.graph.outputs import tensors_in
from prunecli.graph.structure import Role

Rule: TypeAlias = "Callable[[Call], None]"


@dataclass(frozen=True)
class Flow:
    """What a tensor was made of.

    `from_data` tells activations from tensors that parameters alone determine; `parameters` are the
    ones a derived weight was computed from; `open_sites` are the gate sites (names of parameters)
    whose output this activation still carries, not yet read by a contraction.
    """

    from_data: bool = False
    parameters: frozenset[str] = frozenset()
    open_sites: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tag:
    """What the tracer knows of one tensor."""

    labels: Labels
    flow: Flow = Flow()
    picked_from: Atoms | None = None
    """For positions found by argmax and the like: the labels they count along."""


@dataclass(frozen=True, eq=False)
class Contraction:
    """The cost of one contraction: `coefficient` multiply-accumulates per combination of `labels`."""

    module: str
    op: str
    coefficient: int
    labels: tuple[Atoms, ...]


@dataclass
class Path:
    """What the code of one module did, in order: another order once it is cut means that sizes steer it."""

    operations: list[str] = field(default_factory=list)
    """Names of operations, without those that only move or copy."""
    scalars: list[float] = field(default_factory=list)
    """Numbers that entered the arithmetic."""
    picks: list[Atoms] = field(default_factory=list)
    """Parts of labelled dimensions that were sliced out."""


@dataclass
class Findings:
    """What a trace collects besides constraints."""

    roles: dict[str, Role] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    """Tensors in the order of their first use -> the module that used them first."""
    gated: set[str] = field(default_factory=set)
    """Parameters of gate sites: of the last affine layer before a reader."""
    consumed: list[Atoms] = field(default_factory=list)
    produced: list[Atoms] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    sizes: dict[str, dict[bytes, tuple[Atoms, bool]]] = field(default_factory=dict)
    """Per module the labels seen in it; True for those an operation was given the size of."""
    channels: dict[str, tuple[Atoms, Atoms, Atoms]] = field(default_factory=dict)
    """Modules that ran a grouped convolution -> labels of its input, of its output and of its groups."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Operations without a rule -> the module they first ran in."""
    path: dict[str, Path] = field(default_factory=dict)
    """What the code of each module did, beside moving atoms."""


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
    """

    def __init__(
        self,
        constraints: Constraints,
        tensors: Mapping[str, Tensor],
        labels: Mapping[str, Labels],
        parameters: Iterable[str],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.constraints = constraints
        self.findings = Findings()
        self.modules: list[str] = [""]
        self._tags = WeakTensorKeyDictionary()
        self._names = WeakTensorKeyDictionary()
        self._roots = WeakTensorKeyDictionary()
        self._opaque = 0
        weights = set(parameters)
        for name, tensor in tensors.items():
            self._names[tensor] = name
            self._tags[tensor] = Tag(labels[name], Flow(parameters=frozenset({name} & weights)))

    @property
    def module(self) -> str:
        """The innermost module whose forward is running."""
        return self.modules[-1]

    @property
    def path(self) -> Path:
        """What the running module did so far."""
        return self.findings.path.setdefault(self.module, Path())

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
                self._tags[tensor] = Tag((None,) * tensor.dim(), Flow(from_data=True))

    def follow(self, model: nn.Module) -> AbstractContextManager[None]:
        """Keep track of the module whose forward runs, while the context lasts."""
        return _ModuleStack(self, model)

    def tag_input(self, tensor: Tensor) -> None:
        """Mark a tensor as data: nothing of it can be removed."""
        self._tags[tensor] = Tag((None,) * tensor.dim(), Flow(from_data=True))

    def tag_of(self, tensor: Tensor) -> Tag:
        """Return what is known of a tensor; a constant nobody has seen is unlabelled."""
        tag = self._tags.get(tensor)
        return tag if tag is not None else Tag((None,) * tensor.dim())

    def name_of(self, tensor: Tensor) -> str | None:
        """Return the name of a parameter or buffer."""
        name: str | None = self._names.get(tensor)
        return name

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
            picked = () if tag.picked_from is None else (tag.picked_from,)
            for atoms in (*label_arrays(tag.labels), *picked):
                self.constraints.freeze(atoms, Reason(IS_OUTPUT, expected=True))

    def execute(self, call: Call) -> Any:
        """Run the operation itself."""
        return call.func(*call.args, **call.kwargs)

    def finish(self, call: Call) -> None:
        """Do what is left to do once the results are labelled: nothing, here."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = _on_one_device(args, kwargs or {})
        if self._opaque:
            return func(*args, **kwargs)
        call = Call(self, func, args, kwargs)
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
        self.path.scalars.extend(call.scalars())
        if not call.makes_view and call.name not in COPYING:
            self.path.operations.append(call.name)
        (rule or freeze_all)(call)
        self.finish(call)
        return call.out

    def set_tag(self, call: Call, tensor: Tensor, tag: Tag) -> None:
        """Attach labels to a result and note the sizes that the running module has seen."""
        labels = tuple(
            None if length == 1 else label for length, label in zip(tensor.shape, tag.labels, strict=True)
        )
        self._tags[tensor] = Tag(labels, tag.flow, tag.picked_from)
        if call.makes_view:
            for operand in call.operands:
                root = self._roots.setdefault(operand, operand)
                self._roots[tensor] = root
        self._note_sizes(labels, given=call.name in SIZE_TAKING)

    def is_aliased(self, tensor: Tensor) -> bool:
        """Return whether a view shares this tensor's memory, as far as the trace has seen."""
        return tensor in self._roots

    def note_write(self, part: Tensor, flow: Flow) -> None:
        """Note that a part of a tensor was written: what was the same everywhere no longer is."""
        root = self._roots.get(part)
        if root is None or root is part:
            return
        tag = self.tag_of(root)
        labels = tag.labels
        if root.shape != part.shape:
            labels = tuple(None if label is UNIFORM else label for label in labels)
        from_data = tag.flow.from_data or flow.from_data
        parameters = frozenset() if from_data else tag.flow.parameters | flow.parameters
        joined = Flow(from_data, parameters, tag.flow.open_sites | flow.open_sites)
        self._tags[root] = Tag(labels, joined, tag.picked_from)

    def _note_use(self, call: Call) -> None:
        for operand in call.operands:
            tag = self.tag_of(operand)
            name = self.name_of(operand)
            if name is not None:
                self.findings.used.setdefault(name, self.module)
            if tag.picked_from is not None:
                call.freeze(tag.picked_from, "is searched by position")

    def _note_sizes(self, labels: Labels, *, given: bool) -> None:
        seen = self.findings.sizes.setdefault(self.module, {})
        for atoms in label_arrays(labels):
            key = atoms.tobytes()
            seen[key] = (atoms, given or (key in seen and seen[key][1]))


class Call:
    """One operation: what it was given, what came out, and the vocabulary that rules are written in."""

    def __init__(self, tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tracer, self.func, self.args, self.kwargs = tracer, func, args, kwargs
        self.out: Any = None
        packet = func.overloadpacket.__name__
        self.is_in_place = packet.endswith("_") and not packet.endswith("__") and bool(args)
        self.name: str = packet.rstrip("_") if self.is_in_place else packet
        self.operands: list[Tensor] = [
            leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        ]

    def rule(self) -> Rule | None:
        """Return the rule for this operation, or None if nobody wrote one."""
        rule = RULES.get(self.name)
        if rule is None and torch.Tag.pointwise in self.func.tags:
            rule = RULES["pointwise"]
        return rule

    @property
    def makes_view(self) -> bool:
        """Whether the result shares memory with an operand."""
        returns = self.func._schema.returns
        return any(value.alias_info is not None and not value.alias_info.is_write for value in returns)

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, declared in enumerate(self.func._schema.arguments):
            if declared.name == name:
                if position < len(self.args):
                    return self.args[position]
                return default if declared.default_value is None else declared.default_value
        return default

    def labels(self, tensor: Tensor) -> Labels:
        """Return the labels of an operand."""
        return self.tracer.tag_of(tensor).labels

    def flow(self, tensor: Tensor) -> Flow:
        """Return what an operand was made of."""
        return self.tracer.tag_of(tensor).flow

    def reason(self, text: str, *, expected: bool = False) -> Reason:
        """Return a reason that names this operation and the running module."""
        return Reason(text, self.tracer.module, self.name, expected)

    def freeze(self, label: Label, text: str, *, expected: bool = False) -> None:
        """Freeze a labelled dimension; anything else needs no freezing."""
        if isinstance(label, np.ndarray):
            self.tracer.constraints.freeze(label, self.reason(text, expected=expected))

    def tie(self, labels: Iterable[Label], text: str = "meets a dimension that cannot be cut") -> Label:
        """State that equal positions go together; return the label of the result."""
        known = [label for label in labels if label is not UNIFORM]
        vectors = [label for label in known if isinstance(label, np.ndarray)]
        if not known:
            return UNIFORM
        if len(vectors) < len(known):
            for vector in vectors:
                self.freeze(vector, text)
            return None
        for vector in vectors[1:]:
            self.tracer.constraints.tie(vectors[0], vector, self.reason(text))
        return vectors[0]

    def split(self, label: Atoms, shape: Sequence[int]) -> list[Atoms]:
        """Split a labelled dimension in parts; a part of length 1 is frozen."""
        if len(shape) == 1:
            return [label]
        parts = self.tracer.constraints.split(label.reshape(shape))
        for part in parts:
            if part.size == 1:
                self.freeze(part, "has a single position", expected=True)
        return parts

    def note_size(self, label: Label) -> None:
        """Note that the running module was given the length of a labelled dimension."""
        if isinstance(label, np.ndarray):
            seen = self.tracer.findings.sizes.setdefault(self.tracer.module, {})
            seen[label.tobytes()] = (label, True)

    def set_role(self, tensor: Tensor | None, role: Role) -> None:
        """Note what a parameter is to this operation; the first one to say so is believed."""
        if tensor is None:
            return
        name = self.tracer.name_of(tensor)
        names = {name} if name is not None else self.flow(tensor).parameters
        for each in sorted(names):
            self.tracer.findings.roles.setdefault(each, role)

    def put(self, labels: Sequence[Label], *, flow: Flow | None = None, tensor: Tensor | None = None) -> None:
        """Label a result (the only one unless `tensor` says which)."""
        target = self.out if tensor is None else tensor
        tag = Tag(tuple(labels), self.joined_flow() if flow is None else flow)
        self.tracer.set_tag(self, target, tag)

    def joined_flow(self) -> Flow:
        """Return the flow of a result that simply carries its operands on."""
        flows = [self.flow(tensor) for tensor in self.operands]
        if len(flows) == 1:
            return flows[0]
        from_data = any(flow.from_data for flow in flows)
        sites = frozenset[str]().union(*(flow.open_sites for flow in flows))
        parameters = frozenset[str]().union(*(flow.parameters for flow in flows))
        return Flow(from_data, frozenset() if from_data else parameters, sites)

    def scalars(self) -> list[float]:
        """Return the numbers among the arguments that enter the arithmetic, in order; not sizes."""
        places, names = _scalar_arguments(self.func)
        given = [self.args[place] for place in places if place < len(self.args)]
        given += [self.kwargs[name] for name in names if name in self.kwargs]
        numbers = [float(value) for value in given if isinstance(value, (int, float))]
        for operand in self.operands:
            if operand.dim() == 0 and not operand.is_meta and self.flow(operand) == Flow():
                numbers.append(float(operand) if not operand.is_complex() else abs(complex(operand)))
        return numbers

    def results(self) -> list[Tensor]:
        """Return the tensors among the results."""
        return [leaf for leaf in tree_leaves(self.out) if isinstance(leaf, Tensor)]


class _ModuleStack(AbstractContextManager[None]):
    """Hooks that keep a stack of the modules whose forward is running."""

    def __init__(self, tracer: Tracer, model: nn.Module) -> None:
        self.tracer, self.model = tracer, model
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            self.handles.append(module.register_forward_pre_hook(self._enter(name)))
            self.handles.append(module.register_forward_hook(self.tracer.leave))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda module, _: self.tracer.enter(name, module)


OPAQUE: Final = (nn.RNNBase,)
"""Modules that are not looked into: their kernels are fused, and differ from device to device."""

COPYING: Final = frozenset({"clone", "copy", "_to_copy", "_unsafe_view", "contiguous", "empty", "empty_like"})
"""Operations that kernels leave out or put in as sizes suit them."""

RULES: dict[str, Rule] = {}
SIZE_TAKING: set[str] = set()
"""Operations whose sizes come from the caller."""


def rule_for(*names: str, takes_size: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operations, by their names without namespace, overload or trailing underscore."""

    def register(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        if takes_size:
            SIZE_TAKING.update(names)
        return rule

    return register


def _decompose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation as the simpler ones it is made of, if torch knows them."""
    if func in decomposition_table:
        return decomposition_table[func](*args, **kwargs)
    return func.decompose(*args, **kwargs)


@cache
def _scalar_arguments(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    numbers = [
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if str(argument.type) in {"number", "float", "Optional[float]", "Optional[number]", "Tensor"}
    ]
    return tuple(place for place, _ in numbers), tuple(name for _, name in numbers)


def _on_one_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move constants that code made on the CPU to the meta device, where they meet tensors without data."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if len({tensor.is_meta for tensor in tensors}) < 2:
        return args, kwargs
    args, kwargs = tree_map_only(
        Tensor, lambda t: t if t.is_meta or t.dim() == 0 else t.to("meta"), (args, kwargs)
    )
    return args, kwargs


def label_arrays(labels: Labels) -> list[Atoms]:
    """Return the labels that are known, without the rest."""
    return [label for label in labels if isinstance(label, np.ndarray)]


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
