"""`prunecli compress-report`: two checkpoints, or a report, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from prunecli.cli.options import Shown, with_options
from prunecli.cli.streams import say, write_result
from prunecli.errors import GateError, UsageError
from prunecli.pipeline.settings import JudgedData, Machine, Source

NAME = "compress-report"
EXAMPLES = """Examples:
  prunecli compress-report model.pt model.pruned.safetensors --fail-if 'macs_ratio>0.55'
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
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        help="Exit with 3 if a figure stands so, such as `macs_ratio>0.55` or `top1_drop>1.0`. Repeatable.",
        metavar="FIGURE>NUMBER",
        show_default=False,
        rich_help_panel="Gates",
    ),
]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Only say what failed.", rich_help_panel="Gates")]
GitHubSummary = Annotated[
    bool,
    typer.Option(
        "--github-summary",
        help="Add the report, and the checks, to the summary of a GitHub job.",
        rich_help_panel="Gates",
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
    fail_if: FailIf = None,
    exit_zero: ExitZero = False,
    github_summary: GitHubSummary = False,
) -> None:
    """Show what changed between two checkpoints: layers, params, MACs, size, accuracy."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import report_text
    from prunecli.pipeline.compress_report import (
        append_summary,
        check_summary,
        compare_checkpoints,
        read_report,
        write_pictures,
    )
    from prunecli.report.gates import check_gates, parse_gate

    gates = [parse_gate(text) for text in fail_if or []]
    if exit_zero and not gates:
        raise UsageError("`--exit-zero` does nothing without `--fail-if`. Leave it out.")
    if github_summary:
        check_summary()
    with reporting(shown) as reporter:
        if after is None:
            report = read_report(before)
        else:
            report = compare_checkpoints(before, after, source, data.as_samples(), machine, reporter)
        if pictures is not None:
            for path in write_pictures(report, pictures, force):
                reporter.note(f"written: {path}")
    verdicts = check_gates(report, gates)
    if github_summary:
        append_summary(report, [verdict.text for verdict in verdicts])
    write_result(report_text(report, shown.style))
    for verdict in verdicts:
        say(verdict.text)
    failed = sum(not verdict.holds for verdict in verdicts)
    if failed and not exit_zero:
        raise GateError(f"{failed} of {len(verdicts)} checks failed.")
