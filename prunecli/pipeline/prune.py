"""The story of `prune`: checkpoint -> scores -> plan -> smaller model -> proof -> files and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunecli.export.files import check_free, write_files
from prunecli.pipeline.deciding import check_choices, decide
from prunecli.pipeline.finishing import finish
from prunecli.pipeline.idle import refuse_idle
from prunecli.pipeline.keeping import check_run
from prunecli.pipeline.learning import with_learning
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.opening import Opened, open_model
from prunecli.pipeline.paths import choose_paths
from prunecli.pipeline.presets import with_preset
from prunecli.pipeline.recovering import check_sample
from prunecli.pipeline.running import Place, running_on
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.stepping import prune_in_steps
from prunecli.pipeline.telling import Cut
from prunecli.plan import Plan
from prunecli.report import Report
from prunecli.surgery import apply_plan


@dataclass(frozen=True, eq=False)
class Pruned:
    """The smaller model, what was decided, what is said of it, and the files written."""

    model: nn.Module
    plan: Plan
    report: Report
    files: tuple[Path, ...]


def prune(checkpoint: str, choices: Choices | None = None, listener: Listener | None = None) -> Pruned:
    """Make a checkpoint smaller. Nothing is written before everything is proven, and then all or nothing.

    With `choices.steps`, units leave step by step while the model trains; such a run is kept beside the
    files, and can be taken up again.

    Raises:
        UsageError: choices contradict each other, or a method is unknown.
        InputError: a file is bad, unsafe, or does not match the others.
        OutputError: a file is there already, or cannot be written.
        NotPrunableError: the model cannot be pruned as asked.
        ProofError: the smaller model, or its ONNX file, computes something else.
    """
    asked, listener = choices or Choices(), listener or Silent()
    choices = with_preset(asked, asked.importance.preset, asked.given)
    check_choices(choices)
    refuse_idle(choices, asked)
    choices = with_learning(choices)
    if choices.decision.dry_run and (choices.recovery.reconstruct or choices.recovery.recalibrate_bn):
        listener.note("dry run: no model is made, so nothing is re-solved or recalibrated")
    paths = choose_paths(Path(checkpoint), choices, "pruned")
    check_free(paths.wanted, choices.files.force)
    if choices.steps.are_wanted:
        check_run(paths.run, choices.run, choices.files.force)
    opened = open_model(checkpoint, choices.source, choices.samples, listener)
    check_sample(opened, choices)
    with running_on(choices.machine, listener) as place:
        if choices.steps.are_wanted:
            cut = prune_in_steps(opened, paths.run, choices, place, listener)
        else:
            cut = _prune_at_once(opened, choices, place, listener)
        cut, contents, report = finish(
            cut, paths, choices, place.in_full if cut.training else place, listener
        )
    write_files(contents, choices.files.force)
    assert cut.plan is not None
    return Pruned(cut.smaller, cut.plan, report, tuple(contents))


def _prune_at_once(opened: Opened, choices: Choices, place: Place, listener: Listener) -> Cut:
    plan, scores = decide(opened, choices, place, listener)
    listener.progress("cutting", 0, None)
    return Cut(opened, plan, scores, apply_plan(opened.model, opened.structure, plan))
