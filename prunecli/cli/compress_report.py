"""`prunecli compress-report`: two checkpoints, or a report, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from prunecli.cli.options import Shown, with_options
from prunecli.cli.streams import write_result
from prunecli.pipeline.settings import JudgedData, Machine, Source

NAME = "compress-report"
EXAMPLES = """Examples:
  prunecli compress-report model.pt model.pruned.safetensors
  prunecli compress-report model.pruned.json --format md --pictures pictures"""

Before = Annotated[
    str,
    typer.Argument(
        help="The dense checkpoint; or a report that `prunecli prune` wrote.", metavar="A", show_default=False
    ),
]
After = Annotated[
    str | None, typer.Argument(help="The pruned checkpoint.", metavar="[B]", show_default=False)
]
Pictures = Annotated[
    str | None,
    typer.Option(
        help="Draw how the training in a report went: SVG files in that folder.",
        metavar="FOLDER",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace pictures that are there already.")]


@with_options
def command(
    before: Before,
    source: Source,
    data: JudgedData,
    machine: Machine,
    shown: Shown,
    after: After = None,
    pictures: Pictures = None,
    force: Force = False,
) -> None:
    """Show what changed between two checkpoints: layers, params, MACs, size, accuracy."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import report_text
    from prunecli.pipeline.compress_report import compare_checkpoints, read_report, write_pictures

    with reporting(shown) as reporter:
        if after is None:
            report = read_report(before)
        else:
            report = compare_checkpoints(before, after, source, data.as_samples(), machine, reporter)
        if pictures is not None:
            for path in write_pictures(report, pictures, force):
                reporter.note(f"written: {path}")
    write_result(report_text(report, shown.style))
