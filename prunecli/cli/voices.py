"""Of several processes that do the same, one speaks; another one only of what it alone met."""

from __future__ import annotations

import time

from prunecli.pipeline.processes import refuse_shared, started

GRACE = 3.0
"""So many seconds the first process has to fail of the same cause, and speak, before another one does."""

_SHARED = ("score", "prune", "finetune", "train")


def may_speak(is_of_peer: bool = False) -> bool:
    """Return whether this process is to say why it failed; wait where the first one may do so.

    When the first one has failed and spoken, torchrun ends the others meanwhile. That another process is
    gone is said by two of them: one may be the one that is gone.

    Args:
        is_of_peer: whether what failed is another process.
    """
    process = started()
    if process.is_first or is_of_peer:
        return process.rank < 2
    try:
        time.sleep(GRACE)
    except KeyboardInterrupt:
        return False
    return True


def in_own_name(message: str) -> str:
    """Return what is said of a failure, with the process that met it where it is not the first."""
    process = started()
    return message if process.is_first else f"{process.name}: {message}"


def refuse_alone(command: str | None) -> None:
    """Refuse commands that run in one process, where torchrun started several.

    Raises:
        UsageError: it is one.
    """
    refuse_shared(started(), None if command is None or command in _SHARED else f"`prunecli {command}`")
