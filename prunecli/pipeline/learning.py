"""A cut by a method that trains the layers behind it -> the weights that it learned, and its settings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from prunecli.budget import Budget as Limit
from prunecli.importance import build_methods
from prunecli.importance.sparse_columns import Course, Trains
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.presets import fill
from prunecli.pipeline.running import Place, explained, parse_bytes
from prunecli.pipeline.sampling import open_sample
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.telling import Cut
from prunecli.recovery import learn_readers
from prunecli.report import RecoveredLayer, Recovery

METHOD = "i-spasp-train"


def with_learning(choices: Choices) -> Choices:
    """Return the choices with what the method asks for, where the user set nothing.

    It selects a share of each group, and the plan is to keep that: `--keep 0.5` means `--scope layer` and
    `--method-arg keep=0.5`.

    Raises:
        UsageError: `--keep` is no share.
    """
    decision, budget = choices.decision, choices.budget
    if choices.importance.method != (METHOD,) or decision.apply or decision.scores:
        return choices
    choices = replace(choices, budget=fill(budget, {"scope": "layer"}, choices.given))
    if budget.keep is None or choices.steps.are_wanted:
        return choices
    share = float(Limit.parse(f"keep={budget.keep}").limit)
    selecting = {"method": (METHOD,), "method_arg": (f"keep={share}",)}
    return replace(choices, importance=fill(choices.importance, selecting, choices.given))


def course_of(cut: Cut, choices: Choices) -> Course | None:
    """Return how the method of a cut trained the layers behind it; None if it did not, or was not to.

    Re-solving and recalibrating take its place, and so does training of the whole model.
    """
    recovery = choices.recovery
    if cut.scores is None or cut.scores.about.method != METHOD or cut.training is not None:
        return None
    if recovery.reconstruct or recovery.recalibrate_bn:
        return None
    arguments = {name: str(value) for name, value in cut.scores.about.arguments.items()}
    method = build_methods([METHOD], arguments)[METHOD]
    return method.course if isinstance(method, Trains) and method.trains_readers else None


def learn(
    cut: Cut, course: Course, choices: Choices, place: Place, smaller: nn.Module, listener: Listener
) -> tuple[nn.Module, Recovery]:
    """Train the layers behind a cut on the samples that it was scored on.

    Raises:
        DataError: there are none.
    """
    assert cut.scores is not None
    assert cut.plan is not None
    about = cut.scores.about
    sample = open_sample(cut.opened, METHOD, choices.samples, choices.machine, place, smaller)
    dense = place.lend(cut.opened.model)
    with explained(dense, "Training layers"):
        trained, done = learn_readers(
            dense,
            smaller,
            cut.opened.structure,
            cut.plan.kept(),
            sample.stream,
            course,
            seed=about.seed,
            micro_batch=about.micro_batch,
            memory=parse_bytes(choices.machine.max_memory, "--max-memory"),
            tell=partial(_tell, listener),
        )
    layers = tuple(RecoveredLayer(each.layer, each.error_before, each.error_after) for each in done.layers)
    notes = [f"Not trained: {text}." for text in done.skipped]
    if done.fixed:
        groups = len(done.fixed) + len(done.selected)
        notes.append(
            f"{len(done.fixed)} of {groups} groups keep other units than `{METHOD}` selects at their size: "
            "the layers that read them were trained on those."
        )
    return trained, Recovery(METHOD, done.samples, sample.source, layers=layers, notes=tuple(notes))


def _tell(listener: Listener, stage: str, done: int, total: int) -> None:
    listener.progress(
        {"reading": "looking at layers", "training": "training layers"}[stage], done, total or None
    )
