"""What a model learns from the answers of another one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from prunecli.data import class_dimension, main_output
from prunecli.errors import DataError


def distance(output: Any, answers: Any, targets: Any, temperature: float) -> Tensor:
    """Return how far softened answers are from a teacher's: T^2 KL(teacher || model) (Hinton et al., 2015).

    Args:
        output: what the model puts out: logits.
        answers: what the teacher does.
        targets: labels, which tell along which dimension the classes lie.
        temperature: T, by which logits are divided before the softmax.

    Returns:
        The mean over everything that has a label.

    Raises:
        DataError: the two put out different shapes.
    """
    ours, theirs = main_output(output), main_output(answers)
    if ours.shape != theirs.shape:
        raise DataError(
            f"`--distill`: the dense model puts out {list(theirs.shape)}, the one in training "
            f"{list(ours.shape)}. It must be the same network before pruning."
        )
    dim = class_dimension(ours, targets)
    logs, wanted = log_softmax(ours / temperature, dim), softmax(theirs / temperature, dim)
    return kl_div(logs, wanted, reduction="none").sum(dim).mean() * temperature**2
