"""`prunecli train`: a spec -> a trained model, pruned on the way if a schedule says so."""

from __future__ import annotations

from prunecli.cli.grouping import Given
from prunecli.cli.options import Shown, with_options
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Directed,
    Drawn,
    Files,
    Machine,
    Ranking,
    Run,
    Source,
    TrainingData,
    Weights,
)
from prunecli.recipe import Recipe

NAME = "train"
EXAMPLES = """Examples:
  prunecli train --spec net.toml --granularity weight --method synflow --ratio 32 --epochs 60
  prunecli train --spec net.toml --schedule contribution --target units=33% --epochs 105"""


@with_options
def command(
    source: Source,
    data: TrainingData,
    directed: Directed,
    ranking: Ranking,
    budget: Budget,
    weights: Weights,
    drawn: Drawn,
    recipe: Recipe,
    run: Run,
    machine: Machine,
    files: Files,
    shown: Shown,
    given: Given,
) -> None:
    """Train a new model; with --schedule, prune it meanwhile, with --granularity weight, before."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import show_report
    from prunecli.pipeline.finetune import train_new
    from prunecli.pipeline.processes import joined

    choices = Choices(
        source=source,
        samples=data.as_samples(),
        importance=ranking.as_importance(),
        budget=budget,
        weights=weights,
        start=drawn.as_start(),
        machine=machine,
        files=files,
        recipe=recipe,
        directed=directed,
        run=run,
        given=given,
    )
    with reporting(shown) as reporter, joined() as processes:
        trained = train_new(choices, reporter, processes)
    show_report(trained.report, trained.files, shown)
