"""Scores as a value: what a method made of a model on a sample; to bytes and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from prunecli.errors import CheckpointError
from prunecli.importance.context import UnitValues
from prunecli.strict_json import FieldError, Json, from_plain, parse_json, to_plain

VERSION = 1
_METADATA_KEY = "prunecli.scores"


@dataclass(frozen=True)
class About:
    """How scores came to be: what a reader needs to repeat them."""

    method: str
    arguments: Mapping[str, Json] = field(default_factory=dict)
    seed: int = 0
    samples: int = 0
    batches: int = 0
    """How many micro-batches there were; 0 where the method reads no data."""
    micro_batch: int = 0
    """The size of a micro-batch: scores made of squares per micro-batch depend on it."""
    score_bn: str | None = None
    """Whether normalisations used their running statistics (`eval`) or the micro-batch's (`train`)."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores should know."""
    sample: str | None = None
    """The source of the samples, without folders; None where the method reads no data."""
    sample_digest: str | None = None
    """SHA-256 of which samples of it there were."""
    loss: float | None = None
    """The mean loss on the sample, where the method looks at it."""
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    """Group -> the method that scored it, where that was another one."""
    granularity: str = "unit"
    """Whether units have the scores, or single weights (`weight`): then groups are parameters, flattened."""
    gate: str | None = None
    """Whether gates stood behind normalisations (`after-bn`) or before them: then nothing is cut by them."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One score per unit. Higher = keep."""

    about: About
    by_group: UnitValues
    """Group name -> float64 scores on the CPU, in the order of the structure's groups."""

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.about.method

    def to_bytes(self) -> bytes:
        """Return a safetensors file: one tensor per group, the rest as JSON in its metadata."""
        about = to_plain(self.about) | {"version": VERSION, "groups": list(self.by_group)}
        metadata = {_METADATA_KEY: json.dumps(about, sort_keys=True)}
        return save_tensors({name: values.contiguous() for name, values in self.by_group.items()}, metadata)

    @staticmethod
    def from_bytes(content: bytes, source: str = "scores.safetensors") -> Scores:
        """Read what `to_bytes` wrote.

        Args:
            content: The whole file.
            source: What to call it in a message.

        Raises:
            CheckpointError: `content` is no scores file, is damaged, or comes from a later version.
        """
        header = _header(content, source)
        try:
            names = header.pop("groups")
            about = from_plain(About, header)
            tensors = load_tensors(content)
            if set(names) != set(tensors):
                raise ValueError("its groups are not its tensors")
            return Scores(about, {name: _checked(name, tensors[name]) for name in names})
        except (SafetensorError, FieldError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"`{source}`: the scores in it are damaged: {error}. Score again."
            ) from None


def _header(content: bytes, source: str) -> dict[str, Json]:
    """Return the JSON in the metadata of a safetensors file, of a version this program knows."""
    size = int.from_bytes(content[:8], "little")
    try:
        outer = parse_json(content[8 : 8 + size])
        header = parse_json(outer["__metadata__"][_METADATA_KEY], finite=False)
        version = header.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"`{source}` holds no scores. `prunecli score --out {source}` writes such a file."
        ) from None
    if version != VERSION:
        raise CheckpointError(
            f"`{source}`: its format version is {version}, this prunecli reads {VERSION}. "
            "Score again, or install the prunecli that wrote it."
        )
    return dict(header)


def _checked(name: str, values: Tensor) -> Tensor:
    if values.dtype != torch.float64 or values.ndim != 1 or not values.isfinite().all():
        raise ValueError(f"`{name}` is not one finite float64 number per unit")
    return values
