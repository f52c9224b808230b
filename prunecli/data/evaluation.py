"""Model + batches -> loss and accuracy, weighted by samples and never by batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.data.batches import Batch
from prunecli.data.losses import check_labels, class_dimension, loss_function, main_output
from prunecli.errors import DataError
from prunecli.peers import ALONE, Peers
from prunecli.spec import ModelSpec


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on so many samples. Accuracies lie in [0, 1]; None where they have no meaning."""

    loss: float
    top1: float | None
    top5: float | None
    samples: int


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    spec: ModelSpec,
    *,
    trust: bool = False,
    peers: Peers = ALONE,
) -> Evaluation:
    """Measure loss and accuracy in eval mode; the model is left as it was.

    Args:
        model: what is measured.
        batches: the samples; of several processes each has every so manyth batch, from its own rank on.
        spec: says what the loss is.
        trust: run the code of a loss that a spec from inside a checkpoint names.
        peers: the processes that measure together; all get the same, that which one would find.

    Raises:
        DataError: there are no batches, or targets and outputs do not belong together.
        PeerError: another process is gone.
    """
    loss_fn = loss_function(spec, trust=trust)
    own: list[Evaluation] = []
    with _eval_mode(model), torch.no_grad():
        for inputs, targets in batches:
            output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
            count = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0])
            loss, task = float(loss_fn(output, targets)), spec.task
            top1, top5 = (
                hit_share(output, targets, k, task.loss) if task.counts_hits else None for k in (1, 5)
            )
            own.append(Evaluation(loss, top1, top5, count))
    in_turn = zip_longest(*peers.heard(own))
    return _together([each for parts in in_turn for each in parts if each is not None])


def _together(parts: Sequence[Evaluation]) -> Evaluation:
    """Return what batches come to, in their order; an accuracy that one of them lacks has no meaning."""
    samples = sum(part.samples for part in parts)
    if samples == 0:
        raise DataError("There are no batches to evaluate the model on.")

    def mean(values: Sequence[float | None]) -> float | None:
        found = [value * part.samples for value, part in zip(values, parts, strict=True) if value is not None]
        return sum(found) / samples if len(found) == len(parts) else None

    loss = sum(part.loss * part.samples for part in parts) / samples
    return Evaluation(loss, mean([part.top1 for part in parts]), mean([part.top5 for part in parts]), samples)


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
