"""What a story tells while it runs. The stories print nothing themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prunecli.history import EpochRow
    from prunecli.training.loop import Tick


class Listener(Protocol):
    """Whoever wants to know how far a story has come."""

    def note(self, text: str) -> None:
        """Hear what was decided: the device, how a checkpoint was read."""
        ...

    def detail(self, text: str) -> None:
        """Hear what only somebody who asks wants to know."""
        ...

    def warn(self, text: str) -> None:
        """Hear what the user should know before trusting the result."""
        ...

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Hear that `done` of `total` steps of a stage are over; the total may be unknown."""
        ...

    def tick(self, tick: Tick) -> None:
        """Hear that training is a minibatch further."""
        ...

    def epoch(self, row: EpochRow, epochs: int) -> None:
        """Hear what an epoch brought, and how many there will be as far as is known."""
        ...


class Silent:
    """Hears nothing: the default of Python code."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def detail(self, text: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Do nothing."""

    def tick(self, tick: Tick) -> None:
        """Do nothing."""

    def epoch(self, row: EpochRow, epochs: int) -> None:
        """Do nothing."""
