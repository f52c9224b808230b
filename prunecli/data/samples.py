"""Raw items of a source -> batches that fit the spec's inputs: layout, dtype, scale, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from prunecli.errors import DataError, PruneError
from prunecli.spec import InputSpec, ModelSpec, Normalize, Target

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
"""What the model is called with: positional, or by name where the spec names its inputs."""

Fetch = Callable[[Sequence[int]], tuple[Any, Any]]
"""Positions -> inputs (a tensor, a tuple or a mapping) and targets, collated, as the source has them.

The targets are None where the source has no labels.
"""

Change = Callable[[Tensor], Tensor]
"""A batch of raw pictures [B, C, H, W] -> the same, changed at random."""


@dataclass(frozen=True, eq=False)
class Samples(Dataset[Any]):
    """A map-style dataset of (inputs, target); `source` is the text that named it."""

    source: str
    spec: ModelSpec
    fetch: Fetch
    positions: range
    """Which items of the source are in, after the slice."""
    in_turn: bool = False
    """Whether the source gives its items one after another, and no other way."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Inputs, Any]:
        inputs, targets = self.batch([index])
        target = None if targets is None else targets[0]
        if isinstance(inputs, dict):
            return {name: tensor[0] for name, tensor in inputs.items()}, target
        return tuple(tensor[0] for tensor in inputs), target

    @property
    def picture(self) -> int | None:
        """Which input `augment` changes: the first of three dimensions, if there is one."""
        return next((i for i, item in enumerate(self.spec.inputs) if len(item.shape) == 3), None)

    def batch(self, indices: Sequence[int], augment: Change | None = None) -> tuple[Inputs, Any]:
        """Return the samples at `indices`, on the CPU, ready for the model.

        Args:
            indices: which samples.
            augment: changes the pictures as the source has them, before they are scaled and normalised.

        Raises:
            DataError: a sample cannot be read, or does not fit the spec's inputs.
        """
        try:
            raw, targets = self.fetch([self.positions[index] for index in indices])
        except PruneError:
            raise
        except Exception as error:  # from files, decoders and the user's dataset
            reason = str(error).strip().splitlines() or ["no message"]
            raise DataError(
                f"`{self.source}` failed at sample {indices[0]}: {type(error).__name__}: {reason[0]}."
            ) from error
        inputs = self._inputs(raw, augment)
        if self.spec.task.target is Target.INPUT:
            return inputs, next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]
        return inputs, _targets(targets)

    def _inputs(self, raw: Any, augment: Change | None) -> Inputs:
        """Match the inputs to the spec's by name or by position, and fit each."""
        expected = self.spec.inputs
        if isinstance(raw, Mapping):
            missing = [item.name or "(unnamed)" for item in expected if item.name not in raw]
            if missing:
                raise DataError(
                    f"`{self.source}` gives inputs by the names {', '.join(map(str, raw))}, but the spec's "
                    f"[[input]] has {', '.join(missing)}."
                )
            found = [raw[item.name] for item in expected]
        else:
            found = list(raw) if isinstance(raw, (tuple, list)) else [raw]
        if len(found) != len(expected):
            raise DataError(f"`{self.source}` gives {len(found)} inputs, but the spec has {len(expected)}.")
        fitted = [
            fit_input(
                tensor,
                item,
                self.spec.data.normalize,
                self.source,
                augment if position == self.picture else None,
            )
            for position, (tensor, item) in enumerate(zip(found, expected, strict=True))
        ]
        if all(item.name is None for item in expected):
            return tuple(fitted)
        return {str(item.name): tensor for item, tensor in zip(expected, fitted, strict=True)}


def collate(items: Sequence[Any]) -> tuple[Any, Any]:
    """Stack (inputs, target) pairs as `torch.utils.data` does; tensors alone are inputs without targets."""
    if all(isinstance(item, Tensor) for item in items):
        return default_collate(list(items)), None
    if not all(isinstance(item, (tuple, list)) and len(item) == 2 for item in items):
        raise DataError(f"A sample is {type(items[0]).__name__}, not a pair of (input, target).")
    inputs, targets = default_collate(list(items))
    return inputs, targets


def fit_input(
    batch: Any, item: InputSpec, normalize: Normalize | None, source: str, augment: Change | None = None
) -> Tensor:
    """Return a batch in the layout and dtype that the spec's input has.

    Bytes become floats from 0 to 1 where the model takes floats; everything else keeps its values. Changes
    by `augment` come before that.

    Raises:
        DataError: the shape of a sample is not the spec's in any layout.
    """
    if not isinstance(batch, Tensor):
        raise DataError(f"`{source}` gives {type(batch).__name__} as an input, not a tensor.")
    tensor = _arrange(batch, item.shape, source)
    if augment is not None:
        tensor = augment(tensor)
    if not item.is_float:
        if tensor.is_floating_point():
            raise DataError(f"`{source}` gives {tensor.dtype}, but the spec's input is {item.dtype}.")
        return tensor.to(getattr(torch, item.dtype))
    is_bytes = tensor.dtype == torch.uint8
    scaled = tensor.float().div_(255) if is_bytes else tensor.to(getattr(torch, item.dtype))
    return _normalize(scaled, normalize, source).to(getattr(torch, item.dtype))


def _arrange(batch: Tensor, shape: tuple[int, ...], source: str) -> Tensor:
    """Bring samples into `shape`: channels to the front, a missing single channel added, or all flattened."""
    found = tuple(batch.shape[1:])
    if found == shape:
        return batch
    if len(shape) == len(found) > 2 and (found[-1], *found[:-1]) == shape:
        return batch.movedim(-1, 1)
    if shape == (1, *found):
        return batch.unsqueeze(1)
    if len(shape) == 1 and batch[0].numel() == shape[0]:
        return batch.flatten(1)
    raise DataError(
        f"`{source}` has samples of shape {list(found)}, but the spec's input is {list(shape)}. "
        "Correct `shape` in [input] (or `--input`), or convert the data."
    )


def _normalize(batch: Tensor, normalize: Normalize | None, source: str) -> Tensor:
    if normalize is None:
        return batch
    channels = batch.shape[1] if batch.ndim > 1 else 1
    if len(normalize.mean) not in (1, channels):
        raise DataError(
            f"normalize has {len(normalize.mean)} means, but the samples of `{source}` have {channels} "
            "channels."
        )
    shape = (1, -1) + (1,) * (batch.ndim - 2)
    mean, std = (
        torch.tensor(values, dtype=batch.dtype).reshape(shape) for values in (normalize.mean, normalize.std)
    )
    return (batch - mean).div_(std)


def _targets(targets: Any) -> Any:
    """Return the targets with integers as int64 and floats as float32, which the losses expect."""
    if targets is None:
        return None
    if isinstance(targets, Tensor):
        if targets.is_floating_point():
            return targets.float()
        return targets if targets.dtype == torch.bool else targets.long()
    if isinstance(targets, Mapping):
        return {name: _targets(target) for name, target in targets.items()}
    if isinstance(targets, (tuple, list)):
        return tuple(_targets(target) for target in targets)
    raise DataError(f"A target is {type(targets).__name__}, not a tensor or a number.")
