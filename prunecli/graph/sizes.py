"""Which int attributes of modules hold the length of an axis, and must follow when it is cut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunecli.graph.constraints import Atoms
from prunecli.graph.copying import walk
from prunecli.graph.structure import Axis, SizeAttribute
from prunecli.graph.trace import Trace
from prunecli.graph.twins import sizes_of

AxisOf: TypeAlias = Callable[[Atoms], Axis | None]

_CONVOLUTIONS: Final = (nn.modules.conv._ConvNd,)
_LAYER_NORMS: Final = (nn.LayerNorm, nn.RMSNorm)
_NORMS: Final = (nn.modules.batchnorm._NormBase,)

KNOWN: Final[Sequence[tuple[tuple[type, ...], dict[str, tuple[str, int]]]]] = (
    (_CONVOLUTIONS, {"out_channels": ("weight", 0), "in_channels": ("weight", 1)}),
    (_NORMS, {"num_features": ("weight", 0)}),
    ((nn.Linear,), {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    ((nn.Embedding,), {"embedding_dim": ("weight", 1), "num_embeddings": ("weight", 0)}),
    ((nn.GroupNorm,), {"num_channels": ("weight", 0)}),
    ((nn.PReLU,), {"num_parameters": ("weight", 0)}),
)
"""Attributes of standard layers -> the tensor and dimension that they describe."""

_COUNTING: Final = frozenset({"num", "n", "heads", "nhead", "nheads", "groups"})
"""Words in the names of attributes that count heads or groups, unlike `attention_head_size`."""

UNRELATED: Final = frozenset(
    {
        *(
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "output_padding",
            "_reversed_padding_repeated_twice",
        ),
        "num_key_value_groups",  # how many heads share keys and values; heads leave with all that share
    }
)


_NO_INTS: Final = frozenset({bool, dict, float, set, str, OrderedDict, type(None)})
"""What most attributes of modules are."""


def find_attributes(trace: Trace, axis_of: AxisOf) -> Iterator[SizeAttribute]:
    """Yield the attributes that must follow an axis.

    Standard layers and twins say which by name. Elsewhere an int (or an entry of a tuple or list of ints)
    follows an axis of that very length whose size some operation in the module was given.
    """
    outer = np.zeros(trace.constraints.count, dtype=bool)
    for grid in trace.constraints.grids:
        outer[grid.rows] = True
    for name, module in walk(trace.model):
        candidates = _candidates(trace, name)
        known = _known(trace, name, module)
        if isinstance(module, _LAYER_NORMS):
            candidates = _candidates(trace, name, given_only=False)
        stated = sizes_of(module)
        for attribute, entry, value in _ints(module):
            if stated is not None and attribute not in stated:
                continue
            if (attribute, entry) in known:
                label: Atoms | None = known[attribute, entry]
            else:
                label = _best(candidates.get(value, []), attribute, outer, axis_of)
            axis = axis_of(label) if label is not None else None
            if axis is not None:
                yield SizeAttribute(name, attribute, entry, axis)


def _known(trace: Trace, name: str, module: nn.Module) -> dict[tuple[str, int | None], Atoms | None]:
    found: dict[tuple[str, int | None], Atoms | None] = {}
    prefix = f"{name}." if name else ""
    for classes, attributes in KNOWN:
        if isinstance(module, classes):
            for attribute, (tensor, dim) in attributes.items():
                if prefix + tensor in trace.labels:
                    label = trace.labels[prefix + tensor][dim]
                    found[attribute, None] = label if isinstance(label, np.ndarray) else None
    if isinstance(module, _CONVOLUTIONS):
        channels = trace.findings.channels.get(name)
        if channels is not None:
            found["in_channels", None], found["out_channels", None], found["groups", None] = channels
    return found


def _candidates(trace: Trace, name: str, *, given_only: bool = True) -> dict[int, list[Atoms]]:
    by_length: dict[int, list[Atoms]] = {}
    for label, given in trace.findings.sizes.get(name, {}).values():
        if given or not given_only:
            by_length.setdefault(int(label.size), []).append(label)
    return by_length


def _best(labels: list[Atoms], attribute: str, outer: NDArray[np.bool_], axis_of: AxisOf) -> Atoms | None:
    """Choose among axes of equal length: a count of heads or groups is the outer part of a split.

    Of those of the right kind, one that can be cut comes first; one that cannot still beats the wrong kind.
    """
    counts = not _COUNTING.isdisjoint(attribute.split("_"))
    ranked = sorted(
        labels, key=lambda label: (bool(outer[label].all()) is not counts, axis_of(label) is None)
    )
    return ranked[0] if ranked else None


def _ints(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    for attribute, value in vars(module).items():
        if type(value) in _NO_INTS or attribute in UNRELATED or attribute.startswith("_"):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield attribute, None, value
        elif isinstance(value, (tuple, list)) and value and all(type(each) is int for each in value):
            for entry, each in enumerate(value):
                if each > 1:
                    yield attribute, entry, each
