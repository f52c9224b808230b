"""`prunecli score`: the importance of every unit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.options import CheckpointPath, Shown, with_options
from prunecli.cli.streams import say, write_result
from prunecli.pipeline.settings import Importance, Machine, Samples, Source

if TYPE_CHECKING:
    from prunecli.cli.tables import Table
    from prunecli.pipeline.score import Scored

NAME = "score"
EXAMPLES = """Examples:
  prunecli score model.pt --method taylor-fo --method magnitude --units
  prunecli score model.pt --data npz:train.npz#train[:1024] --out scores.safetensors"""

Units = Annotated[
    bool,
    typer.Option("--units", help="One row per unit, not per group.", metavar="", rich_help_panel="Output"),
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
    machine: Machine,
    shown: Shown,
    out: Out = None,
    force: Force = False,
    units: Units = False,
) -> None:
    """Measure how much each unit matters; several methods share one pass over the sample."""
    from prunecli.cli.progress import reporting
    from prunecli.pipeline.score import score

    with reporting(shown) as reporter:
        scored = score(checkpoint, source, samples, importance, machine, out, force, reporter)
    if shown.quiet:
        write_result("\n".join(map(str, scored.files)) or render(scored, shown, units))
        return
    write_result(render(scored, shown, units))
    for path in scored.files:
        say(f"wrote {path}")


def render(scored: Scored, shown: Shown, units: bool) -> str:
    """Return the result in the form asked for."""
    from prunecli.cli.tables import to_csv, to_markdown, to_terminal

    table = units_table(scored) if units else groups_table(scored)
    notes = [note for scores in scored.scores.values() for note in scores.about.notes]
    match shown.style:
        case "json":
            return json.dumps(_plain(scored), indent=2)
        case "csv":
            return to_csv(table)
        case "md":
            return to_markdown([table], f"## {scored.checkpoint}", notes)
        case "table":
            return to_terminal([table], f"{scored.checkpoint}: higher = keep", notes)


def groups_table(scored: Scored) -> Table:
    """Return one row per method and group: how its scores spread."""
    from prunecli.cli.tables import Table

    rows = tuple(
        (method, group, len(values), values.min().item(), values.median().item(), values.max().item())
        for method, scores in scored.scores.items()
        for group, values in scores.by_group.items()
    )
    return Table("Scores by group", ("method", "group", "units", "min", "median", "max"), rows)


def units_table(scored: Scored) -> Table:
    """Return one row per unit, one column per method."""
    from prunecli.cli.tables import Table

    first = next(iter(scored.scores.values())).by_group
    columns = [
        [value for values in scores.by_group.values() for value in values.tolist()]
        for scores in scored.scores.values()
    ]
    names = [(group, unit) for group, values in first.items() for unit in range(len(values))]
    rows = tuple((*name, *values) for name, values in zip(names, zip(*columns, strict=True), strict=True))
    return Table("Scores by unit", ("group", "unit", *scored.scores), rows)


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
        "files": [path.name for path in scored.files],
    }
