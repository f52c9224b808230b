"""Networks lent out for scoring, in one call; and networks to lend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.graph.groups import find_groups
from prunecli.importance.gradients import LossFn
from prunecli.importance.micro_batches import Batch
from prunecli.weights import Lender, Sample, WeightScores, prunable_weights, score_weights


def lend(
    model: nn.Module,
    example: Tensor,
    method: str,
    batches: list[Batch] | None = None,
    arguments: dict[str, Any] | None = None,
    *,
    loss_fn: LossFn | None = cross_entropy,
    batch_size: int = 128,
    with_classifier: bool = True,
    **options: Any,
) -> Lender:
    """Return everything that is said of how a network's weights are to be scored."""
    structure = find_groups(model, (example,))
    names = prunable_weights(model, structure, with_classifier)
    sample = Sample(batches, loss_fn, batch_size) if batches is not None else None
    return Lender(model, structure, ((example,), {}), names, method, arguments or {}, sample, **options)


def scored(*args: Any, **options: Any) -> WeightScores:
    """Return the scores of a network lent out like this."""
    return score_weights(lend(*args, **options))[0]


def bias_free(*widths: int, seed: int = 0) -> nn.Sequential:
    """Return linear layers without biases, with ReLUs between, in float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after, bias=False, dtype=torch.float64), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vgg(divisor: int = 1, seed: int = 0) -> nn.Sequential:
    """Return VGG-16 with batch norms, as for CIFAR-10; of a part of the width."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = 3
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in (each // divisor for each in widths):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, 10)).eval()


def samples(shape: tuple[int, ...], count: int, classes: int, seed: int = 1) -> Batch:
    """Return random inputs in float64, and as many of each class as can be."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return (inputs,), torch.arange(count) % classes
