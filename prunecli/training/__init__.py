"""Training, and pruning inside it: a model, batches, a recipe and a schedule -> a trained model.

The schedules register themselves on import.
"""

from prunecli.training import activation_density as _activation_density  # noqa: F401
from prunecli.training import contribution as _contribution  # noqa: F401
from prunecli.training import imp as _imp  # noqa: F401
from prunecli.training import iterative as _iterative  # noqa: F401
from prunecli.training import network_slimming as _network_slimming  # noqa: F401
from prunecli.training import plain as _plain  # noqa: F401
from prunecli.training.loop import Company, Course, Interrupted, Tick, train
from prunecli.training.schedule import (
    Schedule,
    ScheduleInfo,
    Wishes,
    build_schedule,
    find_schedule,
    schedules,
)
from prunecli.training.training import Phase, Training

__all__ = [
    "Company",
    "Course",
    "Interrupted",
    "Phase",
    "Schedule",
    "ScheduleInfo",
    "Tick",
    "Training",
    "Wishes",
    "build_schedule",
    "find_schedule",
    "schedules",
    "train",
]
