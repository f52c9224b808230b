"""A checkpoint of any format -> its tensors, and a model that holds them. Nothing in it is run."""

from prunecli.checkpoint.match import MatchReport, check_finite, load_into, load_model
from prunecli.checkpoint.read import Checkpoint, read_checkpoint
from prunecli.checkpoint.sniff import Format, sniff

__all__ = [
    "Checkpoint",
    "Format",
    "MatchReport",
    "check_finite",
    "load_into",
    "load_model",
    "read_checkpoint",
    "sniff",
]
