"""Several processes that do the same on parts of the data -> what all of them found, the same in each.

What they tell each other goes through gloo, by the CPU: a peer that dies is an error at once there, and
processes may share a GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from prunecli.errors import InputError, PeerError, PruneError
from prunecli.strict_json import Json

if TYPE_CHECKING:
    from torch import Tensor

_Value = TypeVar("_Value")

PATIENCE = timedelta(minutes=30)
"""So long a process waits for another one that is alive and says nothing."""

_BUCKET = 2**23
"""Entries that are summed up at a time, so that sums take little memory."""

_CARRIERS = ("/gloo/", "NCCL")
"""What torch's errors name when a message to another process is lost."""


@dataclass(frozen=True)
class Peers:
    """Which of how many processes this is, and the means to hear of the others.

    Whatever talks to the others (all but the properties and `part`) must be called by all of them, in the
    same order. Alone, nothing is sent, and torch.distributed is not needed.
    """

    rank: int = 0
    count: int = 1
    patience: timedelta = PATIENCE

    @property
    def are_several(self) -> bool:
        """Return whether there are others."""
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that plans, writes files and prints."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """How messages call this process."""
        return f"process {self.rank} of {self.count}"

    def part(self, samples: int) -> slice:
        """Return which samples of a minibatch are this process's: as even as can be, never a single one.

        Batch normalisation fails on one sample, so that where they do not go round, the last have none.

        >>> [Peers(rank, 4).part(10) for rank in range(4)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
        >>> [Peers(rank, 4).part(5) for rank in range(4)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 5, None), slice(5, 5, None)]
        """
        parts = max(min(self.count, samples // 2), 1)
        first, last = (samples * min(rank, parts) // parts for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def heard(self, own: _Value) -> Iterator[_Value]:
        """Yield what every process says, by rank, one at a time: no two others' are in memory at once.

        Raises:
            PeerError: another process is gone, or says nothing.
        """
        if not self.are_several:
            yield own
            return
        for rank in range(self.count):
            yield self._said_by(rank, own)

    def from_first(self, own: _Value) -> _Value:
        """Return what the first process says.

        Raises:
            PeerError: another process is gone, or says nothing.
        """
        return self._said_by(0, own) if self.are_several else own

    def summed(self, own: Sequence[float]) -> list[float]:
        """Return the sums over all processes: in float64, by rank, so that all have the same to the last bit.

        Raises:
            PeerError: another process is gone, or says nothing.
        """
        if not self.are_several:
            return list(own)
        import torch
        import torch.distributed as distributed

        said = torch.tensor(own, dtype=torch.float64)
        found = [torch.empty_like(said) for _ in range(self.count)]
        with self.explaining():
            distributed.all_gather(found, said)
        return [sum(column) for column in zip(*(each.tolist() for each in found), strict=True)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, the same in each to the last bit.

        Several tensors go at a time, as one.

        Raises:
            PeerError: another process is gone, or says nothing.
        """
        if self.are_several:
            import torch.distributed as distributed

            self._change(tensors, distributed.all_reduce)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process.

        Raises:
            PeerError: another process is gone, or says nothing.
        """
        if self.are_several:
            import torch.distributed as distributed

            self._change(tensors, partial(distributed.broadcast, src=0))

    def agree(self, facts: Mapping[str, Json]) -> None:
        """Make sure that all processes hold the same for true.

        Args:
            facts: by the name that a message may call them.

        Raises:
            InputError: they do not. All processes raise it.
            PeerError: another process is gone, or says nothing.
        """
        if not self.are_several:
            return
        own = {name: _digest(fact) for name, fact in facts.items()}
        for rank, other in enumerate(self.heard(own)):
            if rank == 0:
                first = other
            differing = [name for name in own if first.get(name) != other.get(name)]
            if differing:
                raise InputError(
                    f"Process {rank} has another {' and another '.join(differing)} than process 0. Give all "
                    "of them the same options, files and versions."
                )

    def _change(self, tensors: Sequence[Tensor], change: Callable[[Tensor], Any]) -> None:
        """Replace the content of tensors by what an operation of torch.distributed makes of it."""
        import torch

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            bits = flat.view(torch.uint8) if flat.dtype == torch.bool else flat
            with self.explaining():
                change(bits)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _said_by(self, rank: int, own: Any) -> Any:
        import torch.distributed as distributed

        told = [own if rank == self.rank else None]
        with self.explaining():
            distributed.broadcast_object_list(told, src=rank)
        return told[0]

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn what torch says of a process that is gone into one line.

        Raises:
            PeerError: it is gone, or says nothing.
        """
        try:
            yield
        except RuntimeError as error:
            minutes = self.patience.total_seconds() / 60
            raise PeerError(
                f"Another of the {self.count} processes failed, was killed, or said nothing for "
                f"{minutes:g} minutes. What it or torchrun printed says more. Nothing was left half "
                "written; a run that was kept goes on with `--resume`."
            ) from error

    @contextmanager
    def explaining_inside(self) -> Iterator[None]:
        """Do so where the network itself talks to others, and what fails there was explained already.

        Raises:
            PeerError: another process is gone, or says nothing.
        """
        try:
            yield
        except PruneError as error:
            cause = error.__cause__
            if not isinstance(cause, RuntimeError) or not any(each in str(cause) for each in _CARRIERS):
                raise
            with self.explaining():
                raise cause from None


ALONE = Peers()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one precision and device that may go together, in an order all processes have."""
    waiting: dict[Any, list[Tensor]] = {}
    entries: Counter[Any] = Counter()
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        waiting.setdefault(kind, []).append(tensor)
        entries[kind] += tensor.numel()
        if entries[kind] >= _BUCKET:
            yield waiting.pop(kind)
            del entries[kind]
    yield from waiting.values()


def _digest(fact: Json) -> str:
    return hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()
