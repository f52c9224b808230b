"""What torchrun started -> which of how many processes this is, and how it hears of the others.

What goes from one to the other is small (sums per unit, digests), and goes through gloo, by the CPU: a peer
that dies is an error at once there, and processes may share a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError, PeerError, UsageError
from prunecli.strict_json import Json

if TYPE_CHECKING:
    from prunecli.importance.sharing import Observations, Share

PATIENCE = timedelta(minutes=30)
"""So long a process waits for another one that is alive and says nothing."""

_LAUNCHED = "TORCHELASTIC_RUN_ID"
"""What torchrun sets for every process it starts."""


WEIGHTS_ALONE = "`--granularity weight`"


class Dismissed(Exception):  # noqa: N818 - not an error
    """This process has done its part; the first one goes on alone."""


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Which of those on this machine."""
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

    def share(self) -> Share:
        """Return which micro-batches this process looks at; its stream holds them alone."""
        from prunecli.importance.sharing import Share

        return Share(self.rank, self.count, self._exchanged, is_dealt=True) if self.are_several else Share()

    def agree(self, facts: Mapping[str, Json]) -> None:
        """Make sure that all processes hold the same for true.

        Args:
            facts: by the name that a message may call them.

        Raises:
            InputError: they do not. All processes raise it.
            PeerError: another process failed.
        """
        if not self.are_several:
            return
        own = {name: _digest(fact) for name, fact in facts.items()}
        for rank, other in enumerate(self._heard(own)):
            if rank == 0:
                first = other
            differing = [name for name in own if first.get(name) != other.get(name)]
            if differing:
                raise InputError(
                    f"Process {rank} has another {' and another '.join(differing)} than process 0. Give all "
                    "of them the same options, files and versions."
                )

    def dismiss_others(self) -> None:
        """End here the part of all processes but the first.

        Raises:
            Dismissed: this is one of them.
        """
        if not self.is_first:
            raise Dismissed

    def _exchanged(self, own: Observations) -> Iterator[Observations]:
        """Yield what every process saw, by rank, one at a time: no two others' are in memory at once."""
        return self._heard(_on_cpu(own))

    def _heard(self, own: Any) -> Iterator[Any]:
        import torch.distributed as distributed

        for rank in range(self.count):
            told = [own if rank == self.rank else None]
            with self._explaining():
                distributed.broadcast_object_list(told, src=rank)
            yield told[0]

    @contextmanager
    def _explaining(self) -> Iterator[None]:
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
                f"{minutes:g} minutes. What it or torchrun printed says more. Nothing was written."
            ) from error


ALONE = Processes()


def started() -> Processes:
    """Return which of the processes that torchrun started this is, without meeting the others."""
    if _LAUNCHED not in os.environ:
        return ALONE
    rank, count, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Processes(rank, count, local_rank) if count > 1 else ALONE


def refuse_shared(processes: Processes, what: str | None) -> None:
    """Refuse what several processes cannot share, before any file is opened.

    Args:
        processes: those that torchrun started.
        what: a command or option that runs in one process; None where all may share.

    Raises:
        UsageError: there are several.
    """
    if what is not None and processes.are_several:
        raise UsageError(
            f"{what} runs in one process, and torchrun started {processes.count}. `prunecli score`, and "
            "`prune` of units at once, are shared; leave torchrun out for the rest."
        )


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[Processes]:
    """Meet the other processes that torchrun started, and lend the means to hear of them.

    When this one fails, the others hear of it as soon as it ends, but not before it has said why.

    Raises:
        PeerError: the others do not come.
    """
    processes = replace(started(), patience=patience)
    if not processes.are_several:
        yield processes
        return
    import torch.distributed as distributed

    with processes._explaining():
        distributed.init_process_group("gloo", timeout=patience)
    try:
        yield processes
    except Dismissed:
        distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


def _digest(fact: Json) -> str:
    return hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()


def _on_cpu(seen: Observations) -> Observations:
    states = {
        name: replace(
            state,
            values={group: each.cpu() for group, each in state.values.items()},
            maxima={group: each.cpu() for group, each in state.maxima.items()},
        )
        for name, state in seen.states.items()
    }
    return replace(seen, states=states)
