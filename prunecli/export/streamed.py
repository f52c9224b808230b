"""The content of a file, without being in memory as a whole; of safetensors, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunecli.checkpoint.safetensors_files import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNED = 8
"""The bytes of the tensors begin at a multiple of this."""


class Streamed:
    """What a file will hold, a part at a time, and the same each time."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many bytes it has."""

    @abstractmethod
    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield it in parts, of which each is let go of when the next one is made."""

    @cached_property
    def sha256(self) -> str:
        """The digest of the content, which takes one pass over it."""
        digest = hashlib.sha256()
        for part in self:
            digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class StreamedTensors(Streamed):
    """What `safetensors.torch.save` returns, byte for byte."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def __len__(self) -> int:
        return len(self._header) + sum(_bytes_of(tensor) for tensor in self.tensors.values())

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the header, then the bytes of each tensor, which is read for it."""
        yield memoryview(self._header)
        for name in self._order:
            yield from _chunks(self.tensors[name].detach())

    @cached_property
    def _order(self) -> list[str]:
        ranks = {dtype: rank for rank, dtype in enumerate(_NAMES)}
        return sorted(self.tensors, key=lambda name: (-ranks[self.tensors[name].dtype], name))

    @cached_property
    def _header(self) -> bytes:
        table: dict[str, object] = {"__metadata__": dict(self.metadata)}
        position = 0
        for name in self._order:
            tensor = self.tensors[name]
            end = position + _bytes_of(tensor)
            table[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        padded = text.ljust(math.ceil(len(text) / _ALIGNED) * _ALIGNED)
        return len(padded).to_bytes(8, "little") + padded


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, which is read for that and let go of when they have been used."""
    if tensor.numel():
        yield tensor.reshape(-1).view(torch.uint8).numpy().data
