"""The stories of `finetune` and `train`: a checkpoint, or a new model, and data -> a trained model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from prunecli.checkpoint import sniff
from prunecli.export.files import check_free, write_files
from prunecli.pipeline.finishing import finish
from prunecli.pipeline.idle import refuse_idle_in_training, refuse_idle_recipe
from prunecli.pipeline.keeping import check_run
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.masking import (
    check_masking,
    masked_start,
    with_init,
    with_weight_settings,
)
from prunecli.pipeline.opening import Opened, open_model, open_new
from prunecli.pipeline.paths import choose_paths, named_after
from prunecli.pipeline.presets import with_preset, with_settings
from prunecli.pipeline.processes import ALONE, Processes
from prunecli.pipeline.running import running_on
from prunecli.pipeline.scoring import split_argument
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.stepping import run_schedule
from prunecli.pipeline.weighing import prunes_weights
from prunecli.report import Report
from prunecli.training import find_schedule


@dataclass(frozen=True, eq=False)
class Finetuned:
    """The trained model, what is said of it, and the files written."""

    model: nn.Module
    report: Report
    files: tuple[Path, ...]


def finetune(
    checkpoint: str,
    choices: Choices | None = None,
    listener: Listener | None = None,
    processes: Processes = ALONE,
) -> Finetuned:
    """Train a checkpoint on, pruned or not. The run is kept beside the files, and can be taken up again.

    Args:
        checkpoint: what is trained on.
        choices: what the user wants.
        listener: hears of progress.
        processes: those that train together; all but the first end where the model is trained.

    Raises:
        Dismissed: this process has done its part, and is not the first.
        UsageError: choices contradict each other.
        InputError: a file is bad, unsafe, or does not match the others; there is no training data.
        OutputError: a file is there already, or cannot be written.
        KeyboardInterrupt: somebody stopped it.
    """
    choices, listener = choices or Choices(), listener or Silent()
    refuse_idle_recipe(choices.recipe, choices.given)
    return _train(Path(checkpoint), "finetuned", choices, listener, processes)


def train_new(choices: Choices, listener: Listener | None = None, processes: Processes = ALONE) -> Finetuned:
    """Train a new model from random parameters, under a schedule that may prune it meanwhile.

    Args:
        choices: what the user wants.
        listener: hears of progress.
        processes: those that train together; all but the first end where the model is trained.

    Raises:
        Dismissed: this process has done its part, and is not the first.
        UsageError: choices contradict each other; the schedule is unknown or cannot do what is asked.
        InputError: the spec or the data is bad.
        OutputError: a file is there already, or cannot be written.
        KeyboardInterrupt: somebody stopped it.
    """
    choices = with_weight_settings(with_preset(choices, choices.importance.preset, choices.given))
    name = named_after(None, choices.source)
    refuse_idle_in_training(choices)
    return _train(name, "trained", choices, listener or Silent(), processes)


def _train(
    named_after: Path, done: str, choices: Choices, listener: Listener, processes: Processes
) -> Finetuned:
    choices = with_settings(choices, find_schedule(choices.directed.schedule).usual, choices.given)
    choices.recipe.check()
    if prunes_weights(choices.importance):
        check_masking(choices)
    arguments = dict(split_argument(text, "--schedule-arg") for text in choices.directed.schedule_arg)
    if done != "trained":
        sniff(named_after)  # before anything is said of what would be written
    paths = choose_paths(named_after, choices, done)
    check_free(paths.wanted, choices.files.force)
    check_run(paths.run, choices.run, choices.files.force)
    opened = _open(named_after, done, choices, listener)
    masking = None
    with running_on(choices.machine, listener, processes) as place:
        if prunes_weights(choices.importance):
            opened, masking = masked_start(opened, choices, place, listener)
        cut = run_schedule(opened, choices.directed.schedule, arguments, paths.run, choices, place, listener)
        cut = replace(cut, masking=masking)
        cut, contents, report = finish(cut, paths, choices, place.in_full, listener)
    write_files(contents, choices.files.force)
    return Finetuned(cut.smaller, report, tuple(contents))


def _open(named_after: Path, done: str, choices: Choices, listener: Listener) -> Opened:
    if done == "trained":
        return with_init(open_new(choices.source, choices.samples, choices.machine.seed, listener), choices)
    return open_model(str(named_after), choices.source, choices.samples, listener)
