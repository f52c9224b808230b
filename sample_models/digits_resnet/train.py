"""Train the sample and write its checkpoint: `python -m sample_models.digits_resnet.train`."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from sample_models.digits_resnet.model import digits_resnet
from sample_models.train import train_on_digits

CHECKPOINT = Path(__file__).with_name("model.safetensors")


def make_checkpoint() -> None:
    """Train from scratch and write the state dict."""
    save_file(train_on_digits(digits_resnet, weight_decay=1e-2).state_dict(), CHECKPOINT)


if __name__ == "__main__":
    make_checkpoint()
