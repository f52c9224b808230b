"""`prunecli prune`: a checkpoint -> a smaller one, proven, with its report."""

from __future__ import annotations

from prunecli.cli.options import CheckpointPath, Shown, with_options
from prunecli.cli.streams import say, write_result
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Decision,
    Files,
    Importance,
    Machine,
    Recovery,
    Samples,
    Source,
)

NAME = "prune"
EXAMPLES = """Examples:
  prunecli prune model.pt --spec torchvision:resnet18 --data imagefolder:val --keep 0.5
  prunecli prune model.pt --preset best --target macs=0.5 --round-to 8"""


@with_options
def command(
    checkpoint: CheckpointPath,
    source: Source,
    samples: Samples,
    importance: Importance,
    budget: Budget,
    decision: Decision,
    recovery: Recovery,
    machine: Machine,
    files: Files,
    shown: Shown,
) -> None:
    """Remove the least important units, prove the smaller model equal to the masked one, and save it."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import report_text
    from prunecli.pipeline.prune import prune

    choices = Choices(source, samples, importance, budget, decision, recovery, machine, files)
    with reporting(shown) as reporter:
        pruned = prune(checkpoint, choices, reporter)
    if shown.quiet:
        for path in pruned.files[:1]:  # a dry run may write nothing
            write_result(str(path))
        return
    sizes = {path: path.stat().st_size for path in pruned.files}
    write_result(report_text(pruned.report, shown.style, sizes))
    if shown.style != "table":  # which names the paths itself
        for path in pruned.files:
            say(f"wrote {path}")
