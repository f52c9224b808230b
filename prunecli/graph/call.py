"""One operation as rules see it: what it was given, what came out, and the words to say what that means.

A rule is a function of a `Call`; `rule_for` registers it. `rules/` holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunecli.graph.constraints import FROZEN_ATOM, UNIFORM, Atoms, Label, Labels, Reason
from prunecli.graph.findings import Flow, Tag
from prunecli.graph.structure import Role

if TYPE_CHECKING:
    from prunecli.graph.tracer import Tracer

Rule: TypeAlias = "Callable[[Call], None]"

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


@dataclass(frozen=True)
class Signature:
    """What the schema of an operation says of every call of it."""

    packet: str
    is_in_place: bool
    name: str
    """The name without namespace, overload or trailing underscore."""
    is_pointwise: bool
    makes_view: bool
    """Whether the result shares memory with an operand."""
    places: Mapping[str, int]
    """Arguments by name -> their position."""
    defaults: Mapping[str, Any]
    """Arguments by name -> their default, where there is one other than None."""
    numbers: tuple[tuple[int, str], ...]
    """Position and name of the arguments that may be numbers."""


@cache
def signature_of(func: Any) -> Signature:
    """Return what the schema of an operation says."""
    packet = func.overloadpacket.__name__
    is_in_place = packet.endswith("_") and not packet.endswith("__")
    arguments = func._schema.arguments
    return Signature(
        packet=packet,
        is_in_place=is_in_place,
        name=packet.rstrip("_") if is_in_place else packet,
        is_pointwise=torch.Tag.pointwise in func.tags,
        makes_view=any(
            each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns
        ),
        places={each.name: place for place, each in enumerate(arguments)},
        defaults={each.name: each.default_value for each in arguments if each.default_value is not None},
        numbers=tuple(
            (place, each.name) for place, each in enumerate(arguments) if str(each.type) in _MAY_BE_NUMBERS
        ),
    )


_SINGLE = np.full(1, FROZEN_ATOM)
_MAY_BE_NUMBERS = frozenset({"number", "float", "Optional[float]", "Optional[number]", "Tensor"})


class Call:
    """One operation: what it was given, what came out, and the vocabulary that rules are written in."""

    def __init__(
        self,
        tracer: Tracer,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Tensor] | None = None,
    ) -> None:
        self.tracer, self.func, self.args, self.kwargs = tracer, func, args, kwargs
        self.out: Any = None
        self.signature = signature_of(func)
        self.is_in_place = self.signature.is_in_place and bool(args)
        self.name = self.signature.name if self.is_in_place else self.signature.packet
        self.operands = tensors_given(args, kwargs) if operands is None else operands

    def rule(self) -> Rule | None:
        """Return the rule for this operation, or None if nobody wrote one."""
        rule = RULES.get(self.name)
        if rule is None and self.signature.is_pointwise:
            rule = RULES["pointwise"]
        return rule

    @property
    def makes_view(self) -> bool:
        """Whether the result shares memory with an operand."""
        return self.signature.makes_view

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        place = self.signature.places.get(name)
        if place is None:
            return default
        return self.args[place] if place < len(self.args) else self.signature.defaults.get(name, default)

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
        """Split a labelled dimension in parts; a part of length 1 stays, and splits nothing."""
        lengths = [length for length in shape if length > 1]
        constraints = self.tracer.constraints
        split = iter([label] if len(lengths) == 1 else constraints.split(label.reshape(lengths)))
        return [next(split) if length > 1 else _SINGLE for length in shape]

    def note_size(self, label: Label) -> None:
        """Note that the running module was given the length of a labelled dimension."""
        if isinstance(label, np.ndarray):
            self.tracer.findings.note_size(self.tracer.module, label, given=True)

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
        args, kwargs, numbers = self.args, self.kwargs, self.signature.numbers
        given = [args[place] for place, _ in numbers if place < len(args)]
        if kwargs:
            given += [kwargs[name] for _, name in numbers if name in kwargs]
        found = [float(value) for value in given if isinstance(value, (int, float))]
        for operand in self.operands:
            if not operand.is_meta and operand.dim() == 0 and self.flow(operand) == Flow():
                found.append(float(operand) if not operand.is_complex() else abs(complex(operand)))
        return found

    def results(self) -> list[Tensor]:
        """Return the tensors among the results."""
        return [self.out] if isinstance(self.out, Tensor) else tensors_given(self.out)


def tensors_given(*values: Any) -> list[Tensor]:
    """Return the tensors in (nested) arguments, in order."""
    found: list[Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        kind = type(value)
        if kind in _LEAVES:
            continue
        if isinstance(value, Tensor):
            found.append(value)
        elif kind is tuple or kind is list:
            _collect(value, found)
        elif kind is dict:
            _collect(value.values(), found)
        else:
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


_LEAVES = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format})
