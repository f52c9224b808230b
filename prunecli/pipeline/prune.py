"""The story of `prune`: checkpoint -> scores -> plan -> smaller model -> proof -> files and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunecli.checkpoint import sniff
from prunecli.export.files import check_free, write_files
from prunecli.pipeline.deciding import check_choices, cut_at_once
from prunecli.pipeline.finishing import finish
from prunecli.pipeline.idle import refuse_idle
from prunecli.pipeline.keeping import check_run
from prunecli.pipeline.learning import with_learning
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.masking import mask_at_once, open_asked, with_weight_settings
from prunecli.pipeline.opening import check_start
from prunecli.pipeline.paths import choose_paths, named_after
from prunecli.pipeline.presets import with_preset
from prunecli.pipeline.processes import ALONE, Processes, refuse_shared
from prunecli.pipeline.recovering import check_sample
from prunecli.pipeline.running import running_on
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.stepping import prune_in_steps
from prunecli.pipeline.streaming import STREAMING, open_streaming, with_streaming
from prunecli.pipeline.weighing import prunes_weights
from prunecli.plan import Plan
from prunecli.report import Report


@dataclass(frozen=True, eq=False)
class Pruned:
    """The smaller model, what was decided, what is said of it, and the files written."""

    model: nn.Module
    plan: Plan | None
    """None where weights were masked, and no unit left."""
    report: Report
    files: tuple[Path, ...]


def prune(
    checkpoint: str | None,
    choices: Choices | None = None,
    listener: Listener | None = None,
    processes: Processes = ALONE,
) -> Pruned:
    """Make a checkpoint smaller. Nothing is written before everything is proven, and then all or nothing.

    With `choices.steps`, units leave step by step while the model trains; such a run is kept beside the
    files, and can be taken up again. With `choices.importance.granularity == "weight"`, single weights
    become zeros.

    Args:
        checkpoint: what is pruned; None with `choices.start.at_init`, for a new model.
        choices: what the user wants.
        listener: hears of progress.
        processes: those that share the scoring; all but the first end where all have the same plan.

    Raises:
        Dismissed: this process has done its part, and is not the first.
        UsageError: choices contradict each other, or a method is unknown.
        InputError: a file is bad, unsafe, or does not match the others.
        OutputError: a file is there already, or cannot be written.
        NotPrunableError: the model cannot be pruned as asked.
        ProofError: the smaller model, or its ONNX file, computes something else.
    """
    asked, listener = choices or Choices(), listener or Silent()
    check_start(checkpoint, asked.start)
    choices = with_weight_settings(with_preset(asked, asked.importance.preset, asked.given))
    check_choices(choices)
    if choices.memory.streaming:
        refuse_shared(processes, STREAMING)
    refuse_idle(choices, asked)
    streams = choices.memory.streaming
    choices = with_streaming(choices) if streams else with_learning(choices)
    if choices.decision.dry_run and (choices.recovery.reconstruct or choices.recovery.recalibrate_bn):
        listener.note("dry run: no model is made, so nothing is re-solved or recalibrated")
    if checkpoint is not None:
        sniff(Path(checkpoint))  # before anything is said of what would be written
    paths = choose_paths(named_after(checkpoint, choices.source), choices, "pruned")
    check_free(paths.wanted, choices.files.force)
    if choices.steps.are_wanted:
        check_run(paths.run, choices.run, choices.files.force)
    listener.progress("reading", 0, None)
    opened = (
        open_streaming(checkpoint, choices, listener)
        if streams
        else open_asked(checkpoint, choices, listener)
    )
    check_sample(opened, choices)
    with running_on(choices.machine, listener, processes) as place:
        if choices.steps.are_wanted:
            cut = prune_in_steps(opened, paths.run, choices, place, listener)
        else:
            prune_at_once = mask_at_once if prunes_weights(choices.importance) else cut_at_once
            cut = prune_at_once(opened, choices, place, listener)
        processes.dismiss_others()
        cut, contents, report = finish(
            cut, paths, choices, place.in_full if cut.training else place, listener
        )
    listener.progress("writing", 0, None)
    write_files(contents, choices.files.force)
    return Pruned(cut.smaller, cut.plan, report, tuple(contents))
