"""Lend a model out for scoring, and give it back bit for bit, whatever happened in between."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.graph.borrowing import kept_rng


class ScoreBN(str, Enum):
    """Which statistics normalisations use while scoring."""

    EVAL = "eval"  # the running ones
    TRAIN = "train"  # the micro-batch's own


@contextmanager
def undisturbed(model: nn.Module, score_bn: ScoreBN, seed: int) -> Iterator[None]:
    """Put the model into evaluation mode, with gradients on and random numbers seeded, and undo it all.

    Given back as they were: buffers, mode, hooks and attributes of every module, `requires_grad` and
    `.grad` of every parameter, the random number generators. Parameters are not copied: they are the
    one thing that a forward pass must not write to.
    """
    with ExitStack() as stack:
        stack.enter_context(seeded(seed))
        for give_back in (_attributes(model), _buffers(model), _parameters(model)):
            stack.callback(give_back)
        for module in model.modules():
            has_statistics = getattr(module, "running_mean", None) is not None
            # Not `.train()` or `.eval()`, which models override, some to rewrite their weights.
            module.training = score_bn is ScoreBN.TRAIN and has_statistics
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed random numbers, with gradients on, and give the generators back as they were."""
    with kept_rng(), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


def require_gradients(model: nn.Module, wanted: Collection[Tensor]) -> None:
    """Let autograd follow these parameters and no others. Only inside `undisturbed`."""
    wanted_ids = {id(tensor) for tensor in wanted}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(id(parameter) in wanted_ids)


def _attributes(model: nn.Module) -> Callable[[], None]:
    """Remember the attributes of all modules: mode, hooks, which tensors they hold, what forward caches."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    containers = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if type(value) in (dict, OrderedDict, list, set)
    ]

    def give_back() -> None:
        for attributes, saved in [*before, *containers]:
            attributes.clear()
            attributes.extend(saved) if isinstance(attributes, list) else attributes.update(saved)

    return give_back


def _buffers(model: nn.Module) -> Callable[[], None]:
    """Remember what the buffers hold."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def give_back() -> None:
        with torch.no_grad():
            for buffer, saved in before:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)

    return give_back


def _parameters(model: nn.Module) -> Callable[[], None]:
    """Remember which parameters require gradients, and the gradients that they hold."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]

    def give_back() -> None:
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag)
            parameter.grad = gradient

    return give_back
