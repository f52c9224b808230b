"""Train the sample and write its checkpoint: `python -m sample_models.digits_cnn.train`."""

from __future__ import annotations

from pathlib import Path

import torch

from sample_models.digits_cnn.model import digits_cnn
from sample_models.train import train_on_digits

CHECKPOINT = Path(__file__).with_name("model.pt")


def make_checkpoint() -> None:
    """Train from scratch and write the state dict."""
    torch.save(train_on_digits(digits_cnn, weight_decay=2e-2).state_dict(), CHECKPOINT)


if __name__ == "__main__":
    make_checkpoint()
