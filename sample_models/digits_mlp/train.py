"""Train the sample and write its checkpoint: `python -m sample_models.digits_mlp.train`."""

from __future__ import annotations

from pathlib import Path

import torch

from sample_models.digits_mlp.model import digits_mlp
from sample_models.train import train_on_digits

CHECKPOINT = Path(__file__).with_name("model.pt")


def make_checkpoint() -> None:
    """Train from scratch and write the state dict."""
    model = train_on_digits(digits_mlp, weight_decay=5e-3, peak_rate=0.1, shifted=False)
    torch.save(model.state_dict(), CHECKPOINT)


if __name__ == "__main__":
    make_checkpoint()
