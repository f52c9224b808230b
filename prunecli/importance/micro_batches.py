"""Batches of any size -> micro-batches of one fixed size, which is what squared scores are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prunecli.errors import DataError, UsageError

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor] | Tensor
"""What the model is called with: positional, or by name."""
Batch = tuple[Inputs, Any]
"""Inputs and targets. Targets are a tensor, or a tuple or mapping of tensors; None where there are none."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """So many samples, with their targets."""

    inputs: tuple[Tensor, ...] | Mapping[str, Tensor]
    targets: Any
    samples: int

    def describe(self) -> str:
        """Return the inputs' shapes, for messages."""
        return ", ".join(str(list(tensor.shape)) for tensor in _tensors(self.inputs))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the inputs and targets: what is found out about other samples is not about these."""
        digest = hashlib.sha256()
        for tensor in (*_tensors(self.inputs), *_tensors(self.targets)):
            content = tensor.detach().cpu().contiguous()
            digest.update(f"{content.dtype} {list(content.shape)} ".encode())
            digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def cut(self, start: int, stop: int) -> MicroBatch:
        """Return the samples from `start` to before `stop`."""
        if (start, stop) == (0, self.samples):
            return self

        def part(tensor: Tensor) -> Tensor:
            return tensor[start:stop]

        return MicroBatch(_each(self.inputs, part), _each(self.targets, part), stop - start)

    def taken(self, indices: list[int]) -> MicroBatch:
        """Return the samples at these places, in this order."""

        def part(tensor: Tensor) -> Tensor:
            return tensor[indices]

        return MicroBatch(_each(self.inputs, part), _each(self.targets, part), len(indices))


def micro_batches(
    batches: Iterable[Batch], size: int, device: torch.device | str | None = None
) -> Iterator[MicroBatch]:
    """Cut and join batches so that each micro-batch has `size` samples; the last may have fewer.

    Raises:
        UsageError: `size` is not positive.
        DataError: A batch is empty, or its tensors differ in their number of samples.
    """
    if size < 1:
        raise UsageError(f"A micro-batch has at least one sample, not {size}.")
    waiting: list[MicroBatch] = []
    for number, batch in enumerate(batches):
        waiting.append(_read(batch, number, device))
        while sum(part.samples for part in waiting) >= size:
            whole = joined(waiting)
            yield whole.cut(0, size)
            waiting = [whole.cut(size, whole.samples)] if whole.samples > size else []
    if waiting:
        yield joined(waiting)


def _read(batch: Batch, number: int, device: torch.device | str | None) -> MicroBatch:
    """Return the batch on the device, its tensors counted."""
    inputs, targets = batch
    positional = (inputs,) if isinstance(inputs, Tensor) else inputs
    tensors = [*_tensors(positional), *_tensors(targets)]
    counts = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(counts) != 1 or 0 in counts:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise DataError(f"Batch {number}: expected as many samples in every tensor, found shapes {shapes}.")

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return MicroBatch(_each(positional, move), _each(targets, move), counts.pop())


def joined(parts: list[MicroBatch]) -> MicroBatch:
    """Return the samples of all parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    columns = [[*_tensors(part.inputs), *_tensors(part.targets)] for part in parts]
    whole = iter([torch.cat(same) for same in zip(*columns, strict=True)])
    # `_each` meets the tensors in the order in which `_tensors` lists them.
    inputs, targets = _each((parts[0].inputs, parts[0].targets), lambda _: next(whole))
    return MicroBatch(inputs, targets, sum(part.samples for part in parts))


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same nest of tuples and mappings with every tensor changed."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _each(item, change) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_each(item, change) for item in value)
    raise DataError(f"A batch holds a {type(value).__name__}; expected tensors, or tuples or dicts of them.")


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a nest."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _each(value, note)
    return found
