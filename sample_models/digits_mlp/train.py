"""Train the sample and write its checkpoint: `python -m sample_models.digits_mlp.train`."""

from __future__ import annotations

from pathlib import Path

from sample_models.train import train_sample

CHECKPOINT = Path(__file__).with_name("model.pt")


def make_checkpoint() -> None:
    """Train from scratch and write the state dict."""
    train_sample(CHECKPOINT, lr=0.1, weight_decay=1e-2)


if __name__ == "__main__":
    make_checkpoint()
