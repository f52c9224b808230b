"""`none`: training as it is, in one phase; nothing leaves the model."""

from __future__ import annotations

from prunecli.training.schedule import Schedule, schedule


@schedule("none", source="-", prunes=False)
class Plain(Schedule):
    """Plain training: a baseline, or fine-tuning."""
