"""Running statistics of a smaller model, measured again on a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prunecli.graph.borrowing import eval_mode, kept_rng
from prunecli.graph.copying import copy_module

_NORMS = (nn.modules.batchnorm._NormBase,)

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]


def recalibrate_norms(model: nn.Module, batches: Iterable[Inputs]) -> tuple[nn.Module, int]:
    """Return a copy of `model` with running means and variances of the sample, and how many norms it has.

    The statistics are the plain mean over batches. Only normalisations run in training mode: dropout
    stays off. Without a normalisation, or with an empty sample, the copy is a plain one.
    """
    copied = copy_module(model, lambda _, tensor: tensor.detach().clone())
    norms = [each for each in copied.modules() if isinstance(each, _NORMS) and each.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad(), kept_rng(), eval_mode(copied):
        for number, inputs in enumerate(batches):
            if number == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # a mean over all batches
                    norm.training = True
            copied(**inputs) if isinstance(inputs, Mapping) else copied(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return copied, len(norms)
