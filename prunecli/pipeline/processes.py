"""What torchrun started -> which of how many processes this is, and how it hears of the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from prunecli.errors import UsageError
from prunecli.peers import PATIENCE, Peers

if TYPE_CHECKING:
    from prunecli.importance.sharing import Observations, Share

_LAUNCHED = "TORCHELASTIC_RUN_ID"
"""What torchrun sets for every process it starts."""


class Dismissed(Exception):  # noqa: N818 - not an error
    """This process has done its part; the first one goes on alone."""


@dataclass(frozen=True)
class Processes(Peers):
    """Those that torchrun started, of which this is one."""

    local_rank: int = 0
    """Which of those on this machine."""
    local_count: int = 1
    """How many are on this machine."""

    def share(self) -> Share:
        """Return which micro-batches this process looks at; its stream holds them alone."""
        from prunecli.importance.sharing import Share

        return Share(self.rank, self.count, self._exchanged, is_dealt=True) if self.are_several else Share()

    def dismiss_others(self) -> None:
        """End here the part of all processes but the first.

        Raises:
            Dismissed: this is one of them.
        """
        if not self.is_first:
            raise Dismissed

    def _exchanged(self, own: Observations) -> Iterator[Observations]:
        """Yield what every process saw, by rank."""
        return self.heard(_on_cpu(own))


ALONE = Processes()


def started() -> Processes:
    """Return which of the processes that torchrun started this is, without meeting the others."""
    if _LAUNCHED not in os.environ:
        return ALONE
    rank, count, local_rank, local_count = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if count == 1:
        return ALONE
    return Processes(rank, count, local_rank=local_rank, local_count=local_count)


def refuse_shared(processes: Processes, what: str | None) -> None:
    """Refuse what several processes cannot share, before any file is opened.

    Args:
        processes: those that torchrun started.
        what: a command that runs in one process; None where all may share.

    Raises:
        UsageError: there are several.
    """
    if what is not None and processes.are_several:
        raise UsageError(
            f"{what} runs in one process, and torchrun started {processes.count}. Only `score`, "
            "`prune`, `finetune` and `train` are shared; leave torchrun out."
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

    with processes.explaining(), _standard_output_is_ours():
        distributed.init_process_group("gloo", timeout=patience)
    try:
        yield processes
    except Dismissed:
        distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


@contextmanager
def _standard_output_is_ours() -> Iterator[None]:
    """Send to standard error what PyTorch 2.10 says of its connections on standard output."""
    sys.stdout.flush()
    try:
        ours = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


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
