"""Smaller model + dense model + sample -> a smaller model that answers like the dense one. No training."""

from prunecli.recovery.layers import Reconstruction, Refit, reconstruct
from prunecli.recovery.learn import Learning, learn_readers
from prunecli.recovery.recalibrate import recalibrate_norms

__all__ = ["Learning", "Reconstruction", "Refit", "learn_readers", "recalibrate_norms", "reconstruct"]
