"""Model + structure + sample -> one score per weight -> masks. The methods register themselves on import."""

from prunecli.weights import activation as _activation  # noqa: F401
from prunecli.weights import grasp as _grasp  # noqa: F401
from prunecli.weights import lamp as _lamp  # noqa: F401
from prunecli.weights import lap as _lap  # noqa: F401
from prunecli.weights import magnitude as _magnitude  # noqa: F401
from prunecli.weights import obd as _obd  # noqa: F401
from prunecli.weights import random_weights as _random_weights  # noqa: F401
from prunecli.weights import snip as _snip  # noqa: F401
from prunecli.weights import synflow as _synflow  # noqa: F401
from prunecli.weights.choosing import MaskRule, RatioBase, Selection, WeightBudget
from prunecli.weights.engine import Lender, Masking, Sample, choose_masks, score_weights
from prunecli.weights.network import Masks, Network, WeightMethod, WeightScores
from prunecli.weights.patterns import Pattern
from prunecli.weights.prunable import prunable_weights

__all__ = [
    "Lender",
    "MaskRule",
    "Masking",
    "Masks",
    "Network",
    "Pattern",
    "RatioBase",
    "Sample",
    "Selection",
    "WeightBudget",
    "WeightMethod",
    "WeightScores",
    "choose_masks",
    "prunable_weights",
    "score_weights",
]
