"""Two models side by side: the one value from which every table and file is rendered. No torch.

`costs.describe` gathers the numbers, `compare` puts them side by side, `to_markdown` and `to_csv` write
them down; the terminal's tables are made in cli/.
"""

from prunecli.report.comparison import compare
from prunecli.report.distributions import ScoreFacts, score_facts
from prunecli.report.masks import mask_facts
from prunecli.report.pictures import training_pictures
from prunecli.report.text import to_csv, to_markdown
from prunecli.report.values import (
    Accuracy,
    Change,
    ComparedModel,
    Environment,
    LatencyFacts,
    LayerChange,
    LayerFacts,
    MaskedLayer,
    MaskFacts,
    ModelFacts,
    Notice,
    OnnxCheck,
    ParityCheck,
    PhaseFacts,
    RecoveredLayer,
    Recovery,
    Report,
    Timing,
    Totals,
    TrainingFacts,
    WrittenFile,
)

__all__ = [
    "Accuracy",
    "Change",
    "ComparedModel",
    "Environment",
    "LatencyFacts",
    "LayerChange",
    "LayerFacts",
    "MaskFacts",
    "MaskedLayer",
    "ModelFacts",
    "Notice",
    "OnnxCheck",
    "ParityCheck",
    "PhaseFacts",
    "RecoveredLayer",
    "Recovery",
    "Report",
    "ScoreFacts",
    "Timing",
    "Totals",
    "TrainingFacts",
    "WrittenFile",
    "compare",
    "mask_facts",
    "score_facts",
    "to_csv",
    "to_markdown",
    "training_pictures",
]
