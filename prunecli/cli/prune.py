"""`prunecli prune`: a checkpoint -> a smaller one, proven, with its report."""

from __future__ import annotations

from prunecli.cli.grouping import Given
from prunecli.cli.options import OptionalCheckpoint, Shown, with_options
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Decision,
    Files,
    Importance,
    Machine,
    Memory,
    Recovery,
    Run,
    Samples,
    Source,
    Start,
    Steps,
    Weights,
)
from prunecli.recipe import Recipe

NAME = "prune"
EXAMPLES = """Examples:
  prunecli prune model.pt --spec torchvision:resnet18 --data imagefolder:val --keep 0.5
  prunecli prune model.pt --preset best --target macs=0.5 --round-to 8"""


@with_options
def command(
    budget: Budget,
    source: Source,
    samples: Samples,
    importance: Importance,
    recovery: Recovery,
    start: Start,
    weights: Weights,
    decision: Decision,
    steps: Steps,
    recipe: Recipe,
    run: Run,
    machine: Machine,
    memory: Memory,
    files: Files,
    shown: Shown,
    given: Given,
    checkpoint: OptionalCheckpoint = None,
) -> None:
    """Remove the least important units, or weights; prove the result equal to the masked model; save it."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import show_report
    from prunecli.pipeline.processes import joined
    from prunecli.pipeline.prune import prune

    choices = Choices(
        source=source,
        samples=samples,
        importance=importance,
        start=start,
        budget=budget,
        weights=weights,
        decision=decision,
        recovery=recovery,
        machine=machine,
        memory=memory,
        files=files,
        steps=steps,
        recipe=recipe,
        run=run,
        given=given,
    )
    with reporting(shown) as reporter, joined() as processes:
        pruned = prune(checkpoint, choices, reporter, processes)
    show_report(pruned.report, pruned.files, shown)
