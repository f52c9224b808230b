"""`prunecli compress-report`: two checkpoints, or a report, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from prunecli.cli.options import Shown, with_options
from prunecli.cli.streams import write_result
from prunecli.pipeline.settings import Machine, Samples, Source

NAME = "compress-report"
EXAMPLES = """Examples:
  prunecli compress-report model.pt model.pruned.safetensors
  prunecli compress-report model.pruned.json --format md"""

Before = Annotated[
    str,
    typer.Argument(
        help="The dense checkpoint; or a report that `prunecli prune` wrote.", metavar="A", show_default=False
    ),
]
After = Annotated[
    str | None, typer.Argument(help="The pruned checkpoint.", metavar="[B]", show_default=False)
]


@with_options
def command(
    before: Before, source: Source, samples: Samples, machine: Machine, shown: Shown, after: After = None
) -> None:
    """Show what changed between two checkpoints: layers, params, MACs, size, accuracy."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import report_text
    from prunecli.pipeline.compress_report import compare_checkpoints, read_report

    with reporting(shown) as reporter:
        if after is None:
            report = read_report(before)
        else:
            report = compare_checkpoints(before, after, source, samples, machine, reporter)
    write_result(report_text(report, shown.style))
