"""How a model was trained -> the rows of a table and a line of text, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prunecli.report.numbers import human
from prunecli.report.values import Report, TrainingFacts


def phase_table(facts: TrainingFacts) -> tuple[tuple[str, ...], ...]:
    """Return the phases as rows of texts, the titles first, without columns that are empty throughout."""
    titles = (
        "phase",
        "epochs",
        "units",
        "params",
        "MACs",
        "density",
        "loss",
        "train top1",
        "test top1",
        "best",
    )
    rows = [
        (
            phase.name,
            str(phase.epochs),
            "" if phase.units is None else f"{phase.units:,}",
            "" if phase.params is None else human(phase.params),
            "" if phase.macs is None else human(phase.macs),
            "" if phase.density is None else f"{phase.density:.3f}",
            f"{phase.loss:.4f}",
            _share(phase.top1),
            _share(phase.test_top1) or ("" if phase.test_loss is None else f"loss {phase.test_loss:.4f}"),
            _share(phase.best_top1),
        )
        for phase in facts.phases
    ]
    used = [column for column in range(len(titles)) if any(row[column] for row in rows)]
    return tuple(tuple(row[column] for column in used) for row in (titles, *rows))


def training_text(facts: TrainingFacts) -> str:
    """Write the schedule and the recipe in one line.

    >>> training_text(TrainingFacts("none", 64, recipe={"epochs": 3, "lr": 0.01, "augment": "crop,flip"}))
    'schedule none; batch 64, epochs 3, lr 0.01, augment crop,flip'
    """
    arguments = " ".join(f"{name}={_value(value)}" for name, value in facts.arguments.items())
    schedule = f"schedule {facts.schedule}" + (f" ({arguments})" if arguments else "")
    recipe = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in facts.recipe.items())
    return f"{schedule}; batch {facts.batch_size}, {recipe}"


def phase_notes(facts: TrainingFacts) -> Iterator[str]:
    """Yield what happened, phase by phase."""
    for phase in facts.phases:
        yield from (f"{phase.name}: {note}" for note in phase.notes)


def figure_lines(facts: TrainingFacts) -> Iterator[tuple[str, str]]:
    """Yield (name, value) for the schedule's figures that are single numbers or texts."""
    for name, value in facts.figures.items():
        if value is not None and not isinstance(value, (list, Mapping)):
            yield name.replace("_", " "), _value(value)


def shows_layers(report: Report) -> bool:
    """Say whether a table of layers has anything to show: not where a model was trained and nothing left."""
    if report.training is None or report.masks is not None:
        return True
    return any(each.before != each.after for layer in report.layers for each in (layer.params, layer.macs))


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
