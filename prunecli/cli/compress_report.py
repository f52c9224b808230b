"""`prunecli compress-report`: checkpoints and ONNX files, or a report, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.options import Shown, with_options
from prunecli.cli.streams import say, write_result
from prunecli.errors import GateError
from prunecli.pipeline.report_settings import Gating, Latency, ReportFiles
from prunecli.pipeline.settings import JudgedData, Machine, Source

if TYPE_CHECKING:
    from prunecli.pipeline.compress_report import Told

NAME = "compress-report"
EXAMPLES = """Examples:
  prunecli compress-report model.pt model.pruned.safetensors --fail-if 'macs_ratio>0.55'
  prunecli compress-report model.pruned.json --out report.html"""

Paths = Annotated[
    list[str],
    typer.Argument(
        help="The dense checkpoint, then smaller ones; ONNX files too. Or a report that prunecli wrote.",
        metavar="A [B]...",
        show_default=False,
    ),
]


@with_options
def command(
    paths: Paths,
    source: Source,
    data: JudgedData,
    latency: Latency,
    machine: Machine,
    files: ReportFiles,
    gating: Gating,
    shown: Shown,
) -> None:
    """Compare checkpoints: layers, params, MACs, memory, size, latency, accuracy."""
    from prunecli.cli.progress import reporting
    from prunecli.pipeline.compress_report import compress_report

    with reporting(shown) as reporter:
        told = compress_report(paths, source, data.as_samples(), machine, latency, files, gating, reporter)
        for path in told.pictures:
            reporter.note(f"written: {path}")
    _show(told, shown)
    if told.failed and not gating.exit_zero:
        raise GateError(f"{told.failed} of {len(told.verdicts)} checks failed.")


def _show(told: Told, shown: Shown) -> None:
    """Write the report to standard output; with `-q` only the paths written. Checks are said beside it."""
    from prunecli.cli.tables import report_text

    if shown.quiet:
        for file in told.files:
            write_result(str(file))
    else:
        write_result(report_text(told.report, shown.style, everything=shown.all))
        for file in told.files:
            say(f"wrote {file}")
    for line in told.since:
        say(f"since the baseline: {line}")
    for verdict in told.verdicts:
        say(verdict.text)
