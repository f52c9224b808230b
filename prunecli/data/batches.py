"""Samples -> batches on a device, and which samples they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prunecli.data.permutation import Permutation
from prunecli.data.samples import Inputs, Samples
from prunecli.errors import DataError
from prunecli.spec import Target
from prunecli.spec.tables import without_folder

MOST_LISTED = 2**17
"""How many samples may be shuffled as a list; the order of more is worked out place by place."""
_BLOCK = 2**16

Batch = tuple[Inputs, Any]
"""Inputs, by position or by name, and targets: None where the source has no labels."""


def batches(
    dataset: Samples,
    batch_size: int,
    samples: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    first: int = 0,
    every: int = 1,
    numbers: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield the samples that `choose_samples` names, in its order; the last batch may be smaller.

    Args:
        dataset: what `open_data` returned.
        batch_size: how many samples a batch has.
        samples: how many samples in all; the whole dataset in its own order if None.
        seed: decides which samples.
        device: where the tensors go.
        dtype: what float inputs become.
        first: which batch is the first one; those before it are not read.
        every: read only every so manyth batch from there on, where several processes share the work.
        numbers: read these batches instead, in this order.

    Raises:
        DataError: a sample cannot be read, or does not fit the spec.
    """
    if batch_size < 1:
        raise DataError(f"A batch of {batch_size} samples is empty; the size must be at least 1.")
    indices = choose_samples(len(dataset), samples, seed, in_turn=dataset.in_turn)
    starts: Sequence[int] = range(first * batch_size, len(indices), every * batch_size)
    if numbers is not None:
        starts = [number * batch_size for number in numbers]
    return _batches(dataset, (indices[start : start + batch_size] for start in starts), device, dtype)


def choose_samples(available: int, samples: int | None, seed: int, *, in_turn: bool = False) -> Sequence[int]:
    """Return which samples to use: all in order if `samples` is None, else that many at random, none twice.

    The order is random too, so that no batch holds one class only; it is the same for the same seed. Of
    samples that come only `in_turn`, the first ones are used. Of very many, none are listed in memory.
    """
    if samples is None:
        return range(available)
    if samples < 1:
        raise DataError(f"{samples} samples were asked for; use at least 1.")
    if in_turn:
        return range(min(samples, available))
    if available > MOST_LISTED:
        return Permutation(available, seed, samples)
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    return order[:samples].tolist()


def sample_digest(dataset: Samples, samples: int | None, seed: int) -> str:
    """Return a SHA-256 of which samples were used: the source's text (no folders), the indices, the seed."""
    indices = choose_samples(len(dataset), samples, seed, in_turn=dataset.in_turn)
    text = json.dumps({"source": without_folder(dataset.source), "positions": [], "seed": seed})
    before, _, after = text.rpartition("[]")
    digest = hashlib.sha256(f"{before}[".encode())
    for start in range(0, len(indices), _BLOCK):
        positions = (str(dataset.positions[index]) for index in indices[start : start + _BLOCK])
        digest.update(f"{', ' if start else ''}{', '.join(positions)}".encode())
    digest.update(f"]{after}".encode())
    return digest.hexdigest()


def _batches(
    dataset: Samples,
    parts: Iterable[Sequence[int]],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Iterator[Batch]:
    for part in parts:
        inputs, targets = dataset.batch(part)
        like_inputs = dataset.spec.task.target is Target.INPUT
        yield _moved(inputs, device, dtype), _moved(targets, device, dtype if like_inputs else None)


def _moved(value: Any, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    """Return the same nest of tensors elsewhere."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {name: _moved(item, device, dtype) for name, item in value.items()}
    return tuple(_moved(item, device, dtype) for item in value)
