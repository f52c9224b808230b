"""Processes that train one model, each on its part of every minibatch -> the gradients of all of it.

They weigh their losses by their samples, so that the sum of their gradients is the gradient of the whole
minibatch, and steps, clipping and scores are those of one process, up to rounding. This is done by hand, not
by DistributedDataParallel: that holds on to the parameters that it was built with, and here they are
replaced whenever units leave; and it takes the plain mean, however many samples each process has.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from prunecli.errors import PeerError
from prunecli.peers import Peers
from prunecli.training.training import Training


@torch.no_grad()
def add_up_gradients(model: nn.Module, peers: Peers) -> None:
    """Let all processes have the sums of their gradients; of parameters that none has reached, none.

    Raises:
        PeerError: another process is gone.
    """
    if not peers.are_several:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = peers.summed([float(parameter.grad is not None) for parameter in trained])
    gradients = []
    for parameter, count in zip(trained, reached, strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    peers.add_up(gradients)


def gather_gradients(training: Training) -> None:
    """Let the first process alone hold the gradients of minibatches whose step is still to come.

    Raises:
        PeerError: another process is gone.
    """
    if training.peers.are_several and training.place.batch % training.recipe.accumulate:
        add_up_gradients(training.model, training.peers)
        if not training.peers.is_first:
            training.model.zero_grad()


def check_same(training: Training) -> None:
    """Make sure that all processes have the same parameters.

    Raises:
        PeerError: one has others, or is gone.
    """
    if not training.peers.are_several:
        return
    own = _digest(training.model)
    first = training.peers.from_first(own)
    for rank, other in enumerate(training.peers.heard(own)):
        if other != first:
            raise PeerError(
                f"Process {rank} has other parameters than process 0 after epoch {training.place.epoch}: the "
                "model changes them by itself, and not in the same way everywhere. Train it in one process."
            )


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        content = parameter.detach().cpu().contiguous()
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
