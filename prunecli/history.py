"""What a run writes down after each epoch, as plain numbers that survive a JSON round trip. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prunecli.strict_json import to_plain


@dataclass(frozen=True)
class EpochRow:
    """One epoch. Accuracies are shares of 1; None where they have no meaning or were not measured."""

    epoch: int
    """Counted from 1 over the whole run."""
    phase: str
    """The stretch of training it belongs to: `recovery 2`, `generation 1`."""
    rate: float
    """The learning rate at its start."""
    loss: float
    """The mean training loss."""
    top1: float | None = None
    """Accuracy on the training batches, as they were met."""
    test_loss: float | None = None
    test_top1: float | None = None
    test_top5: float | None = None
    units: int | None = None
    """Units that are left, where groups are known."""
    params: int | None = None
    macs: int | None = None
    density: Mapping[str, float] = field(default_factory=dict)
    """Group -> share of its activations that are not zero, where the schedule counts them."""
    total_density: float | None = None
    notes: tuple[str, ...] = ()
    """What happened in it: units removed, a rule that fired."""


def to_lines(rows: Iterable[EpochRow]) -> str:
    """Return one line of JSON per epoch; what is empty is left out."""
    return "".join(json.dumps(_filled(row), allow_nan=False) + "\n" for row in rows)


def _filled(row: EpochRow) -> dict[str, object]:
    return {name: value for name, value in to_plain(row).items() if value not in (None, {}, [])}
