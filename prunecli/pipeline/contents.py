"""The story of `inspect` for a file without a spec: what it holds, and what has such tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunecli.architectures import Match, Near
from prunecli.architectures.catalogue import read_catalogue
from prunecli.checkpoint.read import Checkpoint
from prunecli.checkpoint.spellings import spellings
from prunecli.errors import MissingSpecError
from prunecli.pipeline.finding import likeness, read, spec_of
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.settings import Samples, Source

if TYPE_CHECKING:
    from prunecli.pipeline.inspect import Inspection


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: int
    bytes: int
    not_finite: int
    """How many values are NaN or infinite."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds. Its fields are those of the JSON."""

    checkpoint: str
    sha256: str
    format: str
    key: str | None
    """Under which key the tensors are; None: at the top."""
    prefix: str
    """What all names begin with, up to the last dot that they share."""
    file_bytes: int
    tensors: tuple[TensorFacts, ...]
    others: tuple[str, ...]
    """Names of what else is in the file."""
    metadata: Mapping[str, str]
    matches: tuple[Match, ...]
    """Architectures with exactly these names and shapes."""
    near: tuple[Near, ...]
    choice: Match | None
    """The match that `--spec auto` takes."""
    compared_with: str
    """Whose architectures are known, with versions."""


def inspect_file(path: str, source: Source, samples: Samples, listener: Listener) -> Inspection | Contents:
    """Say what a checkpoint is made of; where nothing says how to build its model, what the file holds.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the model.
        SpecError: there is a spec, and it is malformed.
    """
    checkpoint = read(path, source)
    try:
        spec = spec_of(checkpoint, source, samples, listener)
    except MissingSpecError:
        return contents_of(checkpoint)
    from prunecli.pipeline.inspect import inspect_model  # slow to import, and not needed above
    from prunecli.pipeline.opening import open_model

    return inspect_model(open_model(checkpoint, source, samples, listener, spec))


def contents_of(checkpoint: Checkpoint) -> Contents:
    """Say what a checkpoint holds."""
    found = likeness(checkpoint)
    *_, (prefix, _) = [each for each in spellings(dict.fromkeys(checkpoint.tensors))]
    return Contents(
        checkpoint=checkpoint.path.name,
        sha256=checkpoint.digest,
        format=checkpoint.kind,
        key=checkpoint.wrapper,
        prefix=prefix,
        file_bytes=checkpoint.bytes,
        tensors=tuple(_facts(name, tensor) for name, tensor in checkpoint.tensors.items()),
        others=checkpoint.others,
        metadata=checkpoint.metadata,
        matches=found.matches,
        near=found.near,
        choice=found.choice,
        compared_with=read_catalogue().versions,
    )


def _facts(name: str, tensor: Tensor) -> TensorFacts:
    is_float = tensor.is_floating_point()
    return TensorFacts(
        name=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        values=tensor.numel(),
        bytes=tensor.numel() * tensor.element_size(),
        not_finite=int((~torch.isfinite(tensor)).sum()) if is_float else 0,
    )
