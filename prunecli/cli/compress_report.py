"""`prunecli compress-report`: checkpoints and ONNX files, or a report, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.options import Shown, with_options
from prunecli.cli.streams import say, write_result
from prunecli.errors import GateError, UsageError
from prunecli.pipeline.settings import JudgedData, Machine, Source

if TYPE_CHECKING:
    from prunecli.report import Report
    from prunecli.report.gates import Verdict

NAME = "compress-report"
EXAMPLES = """Examples:
  prunecli compress-report model.pt model.pruned.safetensors --fail-if 'macs_ratio>0.55'
  prunecli compress-report model.pruned.json --out report.html"""

_SUFFIXES = (".html", ".md", ".csv", ".json")

Paths = Annotated[
    list[str],
    typer.Argument(
        help="The dense checkpoint, then smaller ones; ONNX files too. Or a report that prunecli wrote.",
        metavar="A [B]...",
        show_default=False,
    ),
]
Out = Annotated[
    list[str] | None,
    typer.Option(
        help="Write the report there: .html, .md, .csv or .json. Repeatable.",
        metavar="FILE",
        show_default=False,
        rich_help_panel="Files",
    ),
]
Pictures = Annotated[
    str | None,
    typer.Option(
        help="Draw how the training in a report went: SVG files in that folder.",
        metavar="FOLDER",
        show_default=False,
        rich_help_panel="Files",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace files that are there already.", rich_help_panel="Files")
]
Latency = Annotated[
    bool,
    typer.Option(
        "--latency",
        help="Measure latency too, in PyTorch and in onnxruntime; the models take turns.",
        rich_help_panel="Latency",
    ),
]
LatencyRuns = Annotated[
    int | None,
    typer.Option(
        help="How often each model runs: 30 times by default.",
        min=1,
        metavar="N",
        show_default=False,
        rich_help_panel="Latency",
    ),
]
LatencyBatch = Annotated[
    int | None,
    typer.Option(
        help="Samples per run: 1 by default.",
        min=1,
        metavar="N",
        show_default=False,
        rich_help_panel="Latency",
    ),
]
Sweep = Annotated[
    str | None,
    typer.Option(
        help="Show the trade-off that `prunecli sweep` found too: its .sweep.json.",
        metavar="FILE",
        show_default=False,
        rich_help_panel="Files",
    ),
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        help="Exit with 3 if a figure stands so, such as `macs_ratio>0.55` or `top1_drop>1.0`; with "
        "`--baseline` also `macs_ratio>baseline*1.05`. Repeatable.",
        metavar="FIGURE>LIMIT",
        show_default=False,
        rich_help_panel="Gates",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="A report (.json) of an earlier run, for comparison.",
        metavar="FILE",
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


@with_options
def command(
    paths: Paths,
    source: Source,
    data: JudgedData,
    machine: Machine,
    shown: Shown,
    out: Out = None,
    pictures: Pictures = None,
    sweep: Sweep = None,
    force: Force = False,
    latency: Latency = False,
    latency_runs: LatencyRuns = None,
    latency_batch: LatencyBatch = None,
    fail_if: FailIf = None,
    baseline: Baseline = None,
    exit_zero: ExitZero = False,
    github_summary: GitHubSummary = False,
) -> None:
    """Show what changed between checkpoints: layers, params, MACs, memory, size, latency, accuracy."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import report_text
    from prunecli.export.files import check_free, write_files
    from prunecli.pipeline.compress_report import (
        Timed,
        append_summary,
        check_summary,
        compare_checkpoints,
        read_report,
        with_sweep,
        write_pictures,
    )
    from prunecli.report.gates import changes_since, check_gates, needs_baseline, parse_gate

    gates = [parse_gate(text) for text in fail_if or []]
    if exit_zero and not gates:
        raise UsageError("`--exit-zero` does nothing without `--fail-if`. Leave it out.")
    if baseline is None and (following := [gate for gate in gates if gate.step is not None]):
        raise needs_baseline(following[0])
    if not latency and (latency_runs or latency_batch):
        name = "--latency-runs" if latency_runs else "--latency-batch"
        raise UsageError(f"`{name}` does nothing without `--latency`. Say that too, or leave it out.")
    if latency and len(paths) == 1:
        raise UsageError("`--latency` measures models: name their files, not a report.")
    if github_summary:
        check_summary()
    files = [_checked(path) for path in out or []]
    check_free(files, force)
    earlier = read_report(baseline) if baseline is not None else None
    with reporting(shown) as reporter:
        if len(paths) == 1:
            report = read_report(paths[0])
        else:
            timed = Timed(latency_runs or Timed.runs, latency_batch or Timed.batch_size) if latency else None
            report = compare_checkpoints(paths, source, data.as_samples(), machine, reporter, timed=timed)
        if sweep is not None:
            report = with_sweep(report, sweep)
        verdicts = check_gates(report, gates, earlier)
        if pictures is not None:
            for path in write_pictures(report, pictures, force):
                reporter.note(f"written: {path}")
    write_files({file: _content(report, file, verdicts).encode() for file in files}, force)
    if github_summary:
        append_summary(report, [verdict.text for verdict in verdicts])
    _show(report, report_text(report, shown.style, everything=shown.all), files, shown)
    lines = [f"since the baseline: {line}" for line in changes_since(report, earlier)] if earlier else []
    for line in (*lines, *(verdict.text for verdict in verdicts)):
        say(line)
    failed = sum(not verdict.holds for verdict in verdicts)
    if failed and not exit_zero:
        raise GateError(f"{failed} of {len(verdicts)} checks failed.")


def _checked(path: str) -> Path:
    """Return a path to write to, of which the suffix says in what form."""
    if Path(path).suffix not in _SUFFIXES:
        raise UsageError(f"`--out {path}`: end it in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}.")
    return Path(path)


def _content(report: Report, file: Path, verdicts: tuple[Verdict, ...]) -> str:
    """Return the report in the form that a file's suffix asks for."""
    from prunecli.cli.tables import report_text
    from prunecli.report.page import report_page

    if file.suffix == ".html":
        return report_page(report, [verdict.text for verdict in verdicts])
    return report_text(report, file.suffix[1:])


def _show(report: Report, text: str, files: list[Path], shown: Shown) -> None:
    """Write the report to standard output; with `-q` only the paths written, if there are any."""
    if shown.quiet:
        for file in files:
            write_result(str(file))
        return
    write_result(text)
    for file in files:
        say(f"wrote {file}")
