"""`prunecli train`: a spec -> a trained model, pruned on the way if a schedule says so."""

from __future__ import annotations

from prunecli.cli.grouping import Given
from prunecli.cli.options import Shown, with_options
from prunecli.pipeline.settings import (
    Budget,
    Choices,
    Directed,
    Files,
    Machine,
    Ranking,
    Run,
    Source,
    TrainingData,
)
from prunecli.recipe import Recipe

NAME = "train"
EXAMPLES = """Examples:
  prunecli train --spec net.toml --epochs 60 --lr 0.1 --augment crop,flip
  prunecli train --spec net.toml --schedule contribution --target units=33% --epochs 105"""


@with_options
def command(
    source: Source,
    data: TrainingData,
    directed: Directed,
    ranking: Ranking,
    budget: Budget,
    recipe: Recipe,
    run: Run,
    machine: Machine,
    files: Files,
    shown: Shown,
    given: Given,
) -> None:
    """Train a new model; with --schedule, prune it while it trains."""
    from prunecli.cli.progress import reporting
    from prunecli.cli.tables import show_report
    from prunecli.pipeline.finetune import train_new

    choices = Choices(
        source=source,
        samples=data.as_samples(),
        importance=ranking.as_importance(),
        budget=budget,
        machine=machine,
        files=files,
        recipe=recipe,
        directed=directed,
        run=run,
        given=given,
    )
    with reporting(shown) as reporter:
        trained = train_new(choices, reporter)
    show_report(trained.report, trained.files, shown)
