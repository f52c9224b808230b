"""Groups of settings -> options of commands: which panel describes which; and how results are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from prunecli.cli.grouping import grouped
from prunecli.cli.panels import (
    BUDGET,
    DATA,
    DECISION,
    FILES,
    IMPORTANCE,
    MACHINE,
    MEMORY,
    MODEL,
    RECOVERY,
    SHOWN,
    START,
    STUDY,
    WEIGHTS,
)
from prunecli.cli.report_panels import GATING, LATENCY, REPORT_FILES
from prunecli.cli.sweep_panels import COMPARED, SWEPT, SWEPT_FILES, SWEPT_START
from prunecli.cli.training_panels import DIRECTED, RECIPE, RUN, STEPS
from prunecli.pipeline.report_settings import Gating, Latency, ReportFiles
from prunecli.pipeline.settings import (
    Budget,
    Compared,
    Decision,
    Directed,
    Drawn,
    Files,
    Importance,
    JudgedData,
    Machine,
    Memory,
    Ranking,
    Recovery,
    Run,
    Samples,
    Source,
    Start,
    Steps,
    Study,
    Swept,
    SweptFiles,
    SweptRecipe,
    SweptStart,
    SweptWeights,
    TrainedFiles,
    TrainingData,
    Weights,
)
from prunecli.recipe import Recipe

FormatName = Literal["table", "json", "csv", "md"]

CheckpointPath = Annotated[
    str,
    typer.Argument(
        help="Parameters of the model: a PyTorch or safetensors file, or a file that prunecli wrote.",
        metavar="CKPT",
        show_default=False,
    ),
]


OptionalCheckpoint = Annotated[
    str | None,
    typer.Argument(
        help="Parameters of the model: a PyTorch or safetensors file, or a file that prunecli wrote. "
        "None with `--at-init`.",
        metavar="[CKPT]",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Style:
    """How results are written."""

    format: FormatName = "table"
    json: bool = False
    debug: bool = False

    @property
    def style(self) -> FormatName:
        """The format asked for; `--json` is short for `--format json`."""
        return "json" if self.json else self.format


@dataclass(frozen=True)
class Said(Style):
    """How results are written, and how much is said meanwhile."""

    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class Shown(Said):
    """How results are written that may have long tables."""

    all: bool = False


with_options = grouped(
    {
        Source: MODEL,
        Samples: DATA,
        Machine: MACHINE,
        Memory: MEMORY,
        Importance: IMPORTANCE,
        Study: STUDY,
        Budget: BUDGET,
        Weights: WEIGHTS,
        Start: START,
        Drawn: START,
        Decision: DECISION,
        Recovery: RECOVERY,
        Files: FILES,
        TrainingData: DATA,
        JudgedData: DATA,
        Ranking: IMPORTANCE,
        TrainedFiles: FILES,
        Steps: STEPS,
        Recipe: RECIPE,
        Run: RUN,
        Directed: DIRECTED,
        Compared: COMPARED,
        Swept: SWEPT,
        SweptStart: SWEPT_START,
        SweptWeights: WEIGHTS,
        SweptRecipe: RECIPE,
        SweptFiles: SWEPT_FILES,
        Latency: LATENCY,
        ReportFiles: REPORT_FILES,
        Gating: GATING,
        Style: SHOWN,
        Said: SHOWN,
        Shown: SHOWN,
    }
)
