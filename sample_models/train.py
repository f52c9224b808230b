"""The training that the sample models share: `prunecli train`, and the parameters of what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from prunecli.pipeline.finetune import train_new
from prunecli.pipeline.settings import Choices, Files, Machine, Source
from prunecli.recipe import Recipe

RECIPE = Recipe(epochs=40, lr_schedule="onecycle", decay_all=True)


def train_sample(checkpoint: Path, lr: float, weight_decay: float, augment: str = "") -> None:
    """Train the network of the model.toml beside a checkpoint; write its state dict, print its accuracy.

    Everything is drawn from seed 0 on one CPU thread, so that a rerun gives the same network.

    Args:
        checkpoint: a .pt or .safetensors file.
        lr: the highest learning rate.
        weight_decay: strong, so that units the network can do without become small.
        augment: random changes to the images, as in `--augment`.
    """
    with TemporaryDirectory() as folder:
        trained = train_new(
            Choices(
                source=Source(str(checkpoint.with_name("model.toml"))),
                recipe=replace(RECIPE, lr=lr, weight_decay=weight_decay, augment=augment),
                machine=Machine("cpu", threads=1, seed=0),
                files=Files(folder, onnx=False),
            )
        )
    parameters = trained.model.state_dict()
    if checkpoint.suffix == ".safetensors":
        save_file(parameters, checkpoint)
    else:
        torch.save(parameters, checkpoint)
    accuracy = trained.report.accuracy_after
    assert accuracy is not None
    print(f"test accuracy: {accuracy.top1:.2%}")
