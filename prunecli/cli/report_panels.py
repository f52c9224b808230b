"""The options of `compress-report`, described once."""

from __future__ import annotations

from prunecli.cli.grouping import Described, Panel

LATENCY = Panel(
    "Latency",
    {
        "latency": Described("Measure latency too, in PyTorch and in onnxruntime; the models take turns."),
        "latency_runs": Described("How often each model runs: 30 times by default.", metavar="N", min=1),
        "latency_batch": Described("Samples per run: 1 by default.", metavar="N", min=1),
    },
)
REPORT_FILES = Panel(
    "Files",
    {
        "out": Described("Write the report there: .html, .md, .csv or .json. Repeatable.", metavar="FILE"),
        "pictures": Described(
            "Draw how the training in a report went: SVG files in that folder.", metavar="FOLDER"
        ),
        "sweep": Described(
            "Show the trade-off that `prunecli sweep` found too: its .sweep.json.", metavar="FILE"
        ),
        "force": Described("Replace files that are there already."),
    },
)
GATING = Panel(
    "Gates",
    {
        "fail_if": Described(
            "Exit with 3 if a figure stands so, such as `macs_ratio>0.55` or `top1_drop>1.0`; with "
            "`--baseline` also `macs_ratio>baseline*1.05`. Repeatable.",
            metavar="FIGURE>LIMIT",
        ),
        "baseline": Described("A report (.json) of an earlier run, for comparison.", metavar="FILE"),
        "exit_zero": Described("Only say what failed."),
        "github_summary": Described(
            "Add the report, and the checks, to the summary of a GitHub job.", names=("--github-summary",)
        ),
    },
)
