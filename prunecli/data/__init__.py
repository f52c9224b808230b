"""Sources of samples -> batches, losses and accuracy."""

from prunecli.data.batches import Batch, batches, choose_samples, sample_digest
from prunecli.data.evaluation import Evaluation, evaluate
from prunecli.data.losses import LossFunction, loss_function, main_output
from prunecli.data.samples import Samples
from prunecli.data.sources import SyntheticDataWarning, open_data

__all__ = [
    "Batch",
    "Evaluation",
    "LossFunction",
    "Samples",
    "SyntheticDataWarning",
    "batches",
    "choose_samples",
    "evaluate",
    "loss_function",
    "main_output",
    "open_data",
    "sample_digest",
]
