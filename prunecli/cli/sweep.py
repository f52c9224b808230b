"""`prunecli sweep`: methods x budgets x seeds -> one table, with curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.cli.grouping import Given
from prunecli.cli.options import OptionalCheckpoint, Shown, with_options
from prunecli.cli.streams import say, write_result
from prunecli.pipeline.settings import (
    Compared,
    Machine,
    Recovery,
    Samples,
    Source,
    SweepChoices,
    Swept,
    SweptFiles,
    SweptRecipe,
    SweptStart,
    SweptWeights,
)

if TYPE_CHECKING:
    from prunecli.report.sweep import SweepReport

NAME = "sweep"
EXAMPLES = """Examples:
  prunecli sweep model.pt --method magnitude,taylor-fo,random --target macs=0.75,macs=0.5,macs=0.25
  prunecli sweep --at-init --spec net.toml --granularity weight --method all --ratio 1,4,16,64 --epochs 5"""

_OPTIONAL = ("error", "params", "top-5", "loss")
"""Columns that go first on a narrow terminal, the last one before the others."""


@with_options
def command(
    source: Source,
    samples: Samples,
    start: SweptStart,
    compared: Compared,
    swept: Swept,
    weights: SweptWeights,
    recovery: Recovery,
    recipe: SweptRecipe,
    machine: Machine,
    files: SweptFiles,
    shown: Shown,
    given: Given,
    checkpoint: OptionalCheckpoint = None,
) -> None:
    """Compare methods over budgets and seeds, with or without training; the same command goes on."""
    from prunecli.cli.progress import reporting
    from prunecli.pipeline.sweep import sweep

    choices = SweepChoices(
        source=source,
        samples=samples,
        start=start,
        compared=compared,
        swept=swept,
        weights=weights,
        recovery=recovery,
        recipe=recipe,
        machine=machine,
        files=files,
        given=frozenset(given),
    )
    with reporting(shown) as reporter:
        done = sweep(checkpoint, choices, reporter)
    show(done.report, done.files, shown)


def show(report: SweepReport, files: Sequence[Path], asked: Shown) -> None:
    """Write the result to standard output; only the path of the first file, if that is all to be said."""
    if asked.quiet:
        write_result(str(files[0]))
        return
    write_result(render(report, files, asked))
    if asked.style != "table":  # which names the paths itself
        for path in files:
            say(f"wrote {path}")


def render(report: SweepReport, files: Sequence[Path], asked: Shown) -> str:
    """Return the sweep in the form asked for."""
    from prunecli.cli.tables import Table, to_terminal
    from prunecli.report.sweep_text import sweep_csv, sweep_markdown, sweep_notes, sweep_table

    match asked.style:
        case "json":
            return report.to_json()
        case "csv":
            return sweep_csv(report)
        case "md":
            return sweep_markdown(report)
        case "table":
            pass
    titles, *rows = sweep_table(report)
    optional = tuple(name for name in _OPTIONAL if name in titles)
    table = Table("", titles, tuple(rows), optional, numeric=titles[2:])
    written = [f"{'written' if not i else '':<10}{path}" for i, path in enumerate(files)]
    return to_terminal([table], f"Sweep of {report.title}", [*sweep_notes(report), *written], asked.all)
