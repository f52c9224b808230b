"""Train the sample and write its checkpoint: `python -m sample_models.digits_cnn.train`."""

from __future__ import annotations

from pathlib import Path

from sample_models.train import train_sample

CHECKPOINT = Path(__file__).with_name("model.pt")


def make_checkpoint() -> None:
    """Train from scratch and write the state dict."""
    train_sample(CHECKPOINT, lr=0.05, weight_decay=2e-2, augment="crop=1")


if __name__ == "__main__":
    make_checkpoint()
