"""Sources of samples -> batches, losses and accuracy."""

from prunecli.data.augmentation import Augmentation, parse_augmentation
from prunecli.data.batches import Batch, batches, choose_samples, sample_digest
from prunecli.data.evaluation import Evaluation, evaluate, hit_share
from prunecli.data.losses import LossFunction, class_dimension, loss_function, main_output
from prunecli.data.samples import Samples
from prunecli.data.shuffled import Shuffled
from prunecli.data.sources import SyntheticDataWarning, open_data

__all__ = [
    "Augmentation",
    "Batch",
    "Evaluation",
    "LossFunction",
    "Samples",
    "Shuffled",
    "SyntheticDataWarning",
    "batches",
    "choose_samples",
    "class_dimension",
    "evaluate",
    "hit_share",
    "loss_function",
    "main_output",
    "open_data",
    "parse_augmentation",
    "sample_digest",
]
