"""`prunecli score`: the importance of every unit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.grouping import Given
from prunecli.cli.options import CheckpointPath, Shown, with_options
from prunecli.cli.streams import say, write_result
from prunecli.pipeline.settings import Importance, Machine, Samples, Source, Study

if TYPE_CHECKING:
    from prunecli.cli.tables import Cell, Table
    from prunecli.importance import Coefficients
    from prunecli.pipeline.score import Scored

NAME = "score"
EXAMPLES = """Examples:
  prunecli score model.pt --method taylor-fo --method magnitude --units
  prunecli score model.pt --method taylor-fo --method magnitude --against oracle --samples 512"""

Units = Annotated[
    bool,
    typer.Option(
        "--units", help="One row per unit or weight, not per group.", metavar="", rich_help_panel="Output"
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        help="Write the scores; with several methods, one file each.",
        metavar="FILE.safetensors",
        rich_help_panel="Files",
        show_default=False,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace files that are there already.", metavar="", rich_help_panel="Files"
    ),
]


@with_options
def command(
    checkpoint: CheckpointPath,
    source: Source,
    samples: Samples,
    importance: Importance,
    study: Study,
    machine: Machine,
    shown: Shown,
    given: Given,
    out: Out = None,
    force: Force = False,
    units: Units = False,
) -> None:
    """Measure how much each unit, or weight, matters; several methods share one pass over the sample."""
    from prunecli.cli.progress import reporting
    from prunecli.pipeline.processes import joined
    from prunecli.pipeline.score import score

    with reporting(shown) as reporter, joined() as processes:
        scored = score(
            checkpoint, source, samples, importance, study, machine, out, force, reporter, given, processes
        )
    paths = "\n".join(map(str, scored.files)) if shown.quiet else ""
    if paths or shown.style in ("csv", "json"):  # tables end with the notes
        for note in notes_of(scored):
            say(f"warning: {note}")
    write_result(paths or render(scored, shown, units))
    if not shown.quiet:
        for path in scored.files:
            say(f"wrote {path}")


def render(scored: Scored, shown: Shown, units: bool) -> str:
    """Return the result in the form asked for."""
    from prunecli.cli.tables import to_csv, to_markdown, to_terminal

    table = units_table(scored) if units else groups_table(scored)
    notes = notes_of(scored)
    tables = [table] if units or not scored.agreements else []
    match shown.style:
        case "json":
            return json.dumps(_plain(scored), indent=2)
        case "csv":
            return to_csv(agreement_table(scored) if scored.agreements else table)
        case "md":
            compared = [agreement_table(scored)] if scored.agreements else []
            return to_markdown([*tables, *compared], f"## {scored.checkpoint}", notes)
        case "table":
            compared = agreement_tables(scored)
            return to_terminal([*tables, *compared], f"{scored.checkpoint}: higher = keep", notes, shown.all)


def notes_of(scored: Scored) -> tuple[str, ...]:
    """Return what a reader of the scores should know, each once."""
    return tuple(dict.fromkeys(note for each in scored.scores.values() for note in each.about.notes))


def of_weights(scored: Scored) -> bool:
    """Return whether single weights were scored, not units."""
    return any(scores.about.granularity == "weight" for scores in scored.scores.values())


def groups_table(scored: Scored) -> Table:
    """Return one row per method and group: how its scores spread, by the name of who really scored it."""
    from prunecli.cli.tables import Table

    rows = tuple(
        (
            scores.about.fallbacks.get(group, method),
            group,
            len(values),
            values.min().item(),
            values.median().item(),
            values.max().item(),
        )
        for method, scores in scored.scores.items()
        for group, values in scores.by_group.items()
    )
    holder, what = ("parameter", "weights") if of_weights(scored) else ("group", "units")
    return Table(f"Scores by {holder}", ("method", holder, what, "min", "median", "max"), rows)


def units_table(scored: Scored) -> Table:
    """Return one row per unit, one column per method; one more for a method that others filled in for."""
    from prunecli.cli.tables import Table

    first = next(iter(scored.scores.values())).by_group
    titles: list[str] = []
    columns: list[list[Cell]] = []
    for method, scores in scored.scores.items():
        titles.append(method)
        columns.append([value for values in scores.by_group.values() for value in values.tolist()])
        if fallbacks := scores.about.fallbacks:
            titles.append(f"{method}: scored by")
            columns.append(
                [fallbacks.get(group, method) for group, each in scores.by_group.items() for _ in each]
            )
    names = [(group, unit) for group, values in first.items() for unit in range(len(values))]
    rows = tuple((*name, *values) for name, values in zip(names, zip(*columns, strict=True), strict=True))
    holder, what = ("parameter", "weight") if of_weights(scored) else ("group", "unit")
    return Table(f"Scores by {what}", (holder, what, *titles), rows)


def agreement_table(scored: Scored) -> Table:
    """Return one row per method and reference: correlations per layer and over all units."""
    from prunecli.cli.tables import Table

    columns = ("method", "against", "Pearson", "Spearman", "Kendall")
    rows = tuple(
        (each.method, each.against, *_three(each.per_layer), *_three(each.all_layers), len(each.constant))
        for each in scored.agreements
    )
    more = ("all: Pearson", "all: Spearman", "all: Kendall", "layers skipped")
    return Table("Agreement: mean over layers, then over all together", (*columns, *more), rows)


def agreement_tables(scored: Scored) -> list[Table]:
    """Return the same in narrow tables, one for each reference and way to average."""
    from prunecli.cli.tables import Table

    columns = ("method", "Pearson", "Spearman", "Kendall", "layers skipped")
    tables = []
    for reference in dict.fromkeys(each.against for each in scored.agreements):
        found = [each for each in scored.agreements if each.against == reference]
        layers, units = found[0].layers, found[0].units
        per_layer = tuple((each.method, *_rounded(each.per_layer), len(each.constant)) for each in found)
        together = tuple((each.method, *_rounded(each.all_layers)) for each in found)
        tables.append(Table(f"Against {reference}: mean over {layers} layers", columns, per_layer))
        what = "weights" if of_weights(scored) else "units"
        tables.append(Table(f"Against {reference}: all {units:,} {what} together", columns[:-1], together))
    return tables


def _three(found: Coefficients) -> tuple[float | None, float | None, float | None]:
    return found.pearson, found.spearman, found.kendall


def _rounded(found: Coefficients) -> tuple[Cell, ...]:
    return tuple("-" if value is None else f"{value:.3f}" for value in _three(found))


def _plain(scored: Scored) -> dict[str, object]:
    from prunecli.strict_json import to_plain

    return {
        "version": 1,
        "checkpoint": scored.checkpoint,
        "methods": [
            {
                **to_plain(scores.about),
                "scores": {group: values.tolist() for group, values in scores.by_group.items()},
            }
            for scores in scored.scores.values()
        ],
        "agreement": to_plain(scored.agreements),
        "files": [path.name for path in scored.files],
    }
