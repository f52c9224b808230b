"""Model + batches -> loss and accuracy, weighted by samples and never by batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.data.batches import Batch
from prunecli.data.losses import check_labels, class_dimension, loss_function, main_output
from prunecli.errors import DataError
from prunecli.spec import ModelSpec


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on so many samples. Accuracies lie in [0, 1]; None where they have no meaning."""

    loss: float
    top1: float | None
    top5: float | None
    samples: int


def evaluate(
    model: nn.Module, batches: Iterable[Batch], spec: ModelSpec, *, trust: bool = False
) -> Evaluation:
    """Measure loss and accuracy in eval mode; the model is left as it was.

    Raises:
        DataError: there are no batches, or targets and outputs do not belong together.
    """
    loss_fn = loss_function(spec, trust=trust)
    samples, loss = 0, 0.0
    hits: dict[int, float] = {1: 0.0, 5: 0.0} if spec.task.counts_hits else {}
    with _eval_mode(model), torch.no_grad():
        for inputs, targets in batches:
            output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
            count = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0])
            samples += count
            loss += float(loss_fn(output, targets)) * count
            for k in list(hits):
                share = hit_share(output, targets, k, spec.task.loss)
                if share is None:
                    del hits[k]
                else:
                    hits[k] += share * count
    if samples == 0:
        raise DataError("There are no batches to evaluate the model on.")
    top1, top5 = (hits[k] / samples if k in hits else None for k in (1, 5))
    return Evaluation(loss=loss / samples, top1=top1, top5=top5, samples=samples)


def hit_share(output: Any, target: Any, k: int, loss: str) -> float | None:
    """Return the share of targets that are among the k highest outputs; None where that has no meaning."""
    if loss == "mse" or not isinstance(target, Tensor):
        return None
    logits = main_output(output)
    if loss == "bce":
        is_right = (logits.reshape(-1) > 0) == (target.reshape(-1) > 0.5)
        return float(is_right.double().mean()) if k == 1 and logits.numel() == target.numel() else None
    try:
        dimension = class_dimension(logits, target)
    except DataError:  # a loss of the user's own, whose targets are no labels
        return None
    if logits.shape[dimension] <= k:
        return None
    if target.is_floating_point():  # a probability per class
        if target.shape != logits.shape:
            return None
        target = target.argmax(dimension)
    check_labels(logits, target, dimension)
    counted = target != -100
    best = logits.topk(k, dim=dimension).indices
    is_hit = (best == target.unsqueeze(dimension)).any(dimension)
    return float(is_hit[counted].double().mean()) if bool(counted.any()) else 0.0


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into the mode each had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
