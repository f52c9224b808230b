"""How to train, as plain values: optimizer, rates, regularisation, when to stop. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from prunecli.errors import UsageError

OptimizerName = Literal["sgd", "adam", "adamw"]
RateName = Literal["cosine", "step", "constant", "onecycle"]


@dataclass(frozen=True)
class Recipe:
    """What a training run follows. The defaults fine-tune a pruned image classifier."""

    epochs: int = 10
    optimizer: OptimizerName = "sgd"
    lr: float = 0.01
    lr_schedule: RateName = "cosine"
    lr_step: int = 10
    """Epochs between two drops of the `step` schedule,"""
    lr_gamma: float = 0.1
    """and what each multiplies the rate by."""
    warmup: float = 0.0
    """Epochs in which the rate rises from nearly zero."""
    momentum: float = 0.9
    """For Adam and AdamW, the first beta."""
    nesterov: bool = True
    second_beta: float = 0.999
    weight_decay: float = 5e-4
    decay_all: bool = False
    """Let weight decay act on biases and normalisations too."""
    label_smoothing: float = 0.0
    clip: float | None = None
    """Largest norm of the gradients."""
    accumulate: int = 1
    """Minibatches whose gradients are averaged into one step."""
    augment: str = ""
    ema: float | None = None
    """Decay of the running average of the parameters, which is then what is judged and saved."""
    distill: str | None = None
    """A checkpoint of the dense model, whose outputs the smaller one learns from."""
    distill_temperature: float = 4.0
    distill_weight: float = 0.5
    """Share of the loss that comes from the dense model."""
    patience: int | None = None
    """Epochs without improvement on the test data after which training stops."""
    channels_last: bool = False
    workers: int = 0
    """Processes that read and augment samples."""

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UsageError: naming the option.
        """
        for option, value, low, high in (
            ("--epochs", self.epochs, 0, inf),
            ("--lr", self.lr, 0, inf),
            ("--lr-step", self.lr_step, 1, inf),
            ("--lr-gamma", self.lr_gamma, 0, inf),
            ("--warmup", self.warmup, 0, inf),
            ("--weight-decay", self.weight_decay, 0, inf),
            ("--accumulate", self.accumulate, 1, inf),
            ("--patience", self.patience, 1, inf),
            ("--workers", self.workers, 0, inf),
            ("--label-smoothing", self.label_smoothing, 0, 1),
            ("--distill-weight", self.distill_weight, 0, 1),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(f"`{option} {value}`: expected {_from(low, high)}.")
        for option, value in (
            ("--momentum", self.momentum),
            ("--second-beta", self.second_beta),
            ("--ema", self.ema),
        ):
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"`{option} {value}`: expected a number from 0 to below 1.")
        for option, value in (("--clip", self.clip), ("--distill-temperature", self.distill_temperature)):
            if value is not None and not 0 < value < inf:
                raise UsageError(f"`{option} {value}`: expected a number above 0.")
        if self.warmup and self.lr_schedule == "onecycle":
            raise UsageError(
                "`--warmup` and `--lr-schedule onecycle`, which warms up by itself; leave one out."
            )


def _from(low: float, high: float) -> str:
    return f"a number from {low} to {high}" if high < inf else f"a number of at least {low}"
