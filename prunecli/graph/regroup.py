"""Labels through a view: dimensions are split, merged or moved; the order of elements stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prunecli.graph.constraints import UNIFORM, Atoms, Constraints, Label, Labels


def regroup(
    constraints: Constraints, labels: Labels, shape: Sequence[int], new_shape: Sequence[int]
) -> Labels:
    """Return the labels after a tensor of `shape` is viewed as `new_shape`.

    A dimension that is split gets one new label per part, tied to the old one by a grid: a position
    goes when its row or its column goes. A merge is the same read backwards.
    """
    result: list[Label] = [None] * len(new_shape)
    for before, after in _blocks(shape, new_shape):
        if len(before) == 1 and len(after) == 1:
            result[after[0]] = labels[before[0]]
            continue
        block = [labels[dim] for dim in before]
        if not any(isinstance(label, np.ndarray) for label in block):
            filler = UNIFORM if block and all(label is UNIFORM for label in block) else None
            new_labels: list[Label] = [filler] * len(after)
        else:
            flat = _flatten(constraints, block, [shape[dim] for dim in before])
            new_labels = spread(constraints, flat.reshape([new_shape[dim] for dim in after]))
        for dim, label in zip(after, new_labels, strict=True):
            result[dim] = label
    return tuple(result)


def spread(constraints: Constraints, cells: NDArray[np.int64]) -> list[Label]:
    """Return one label per dimension of `cells`; dimensions along which nothing varies get None."""
    varying = [dim for dim in range(cells.ndim) if _varies(cells, dim)]
    corner = cells[tuple(slice(None) if dim in varying else 0 for dim in range(cells.ndim))]
    labels: list[Label] = [None] * cells.ndim
    if varying:
        for dim, label in zip(varying, constraints.split(np.ascontiguousarray(corner)), strict=True):
            labels[dim] = label
    return labels


def _varies(cells: NDArray[np.int64], dim: int) -> bool:
    first = cells.take([0], axis=dim)
    return bool((cells != first).any())


def _flatten(constraints: Constraints, block: Sequence[Label], shape: Sequence[int]) -> Atoms:
    """Return one atom per element of a block of dimensions, in memory order."""
    labelled = [dim for dim, label in enumerate(block) if isinstance(label, np.ndarray)]
    cells = constraints.merge([label for label in block if isinstance(label, np.ndarray)])
    spaced = cells.reshape([shape[dim] if dim in labelled else 1 for dim in range(len(shape))])
    return np.broadcast_to(spaced, tuple(shape)).reshape(-1)


def _blocks(shape: Sequence[int], new_shape: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of dimensions, before and after, that hold the same number of elements.

    Dimensions of length 1 hold nothing to label and are left out.
    """
    before = [dim for dim, length in enumerate(shape) if length != 1]
    after = [dim for dim, length in enumerate(new_shape) if length != 1]
    while before and after:
        left, right = [before.pop(0)], [after.pop(0)]
        size, new_size = shape[left[0]], new_shape[right[0]]
        while size != new_size:
            if size < new_size:
                left.append(before.pop(0))
                size *= shape[left[-1]]
            else:
                right.append(after.pop(0))
                new_size *= new_shape[right[-1]]
        yield left, right
