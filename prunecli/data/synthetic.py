"""`random:` -> samples made up from the spec's inputs and from what the model puts out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunecli.data.losses import main_output
from prunecli.data.samples import Fetch
from prunecli.errors import DataError
from prunecli.model import build_model, draw_input, example_inputs
from prunecli.spec import ModelSpec


def open_random(spec: ModelSpec, seed: int, trust: bool) -> Fetch:
    """Return how to fetch samples, each drawn from the seed and its position alone."""
    output = _example_output(spec, trust)

    def fetch(indices: Sequence[int]) -> tuple[Any, Any]:
        drawn = [_draw(spec, output, seed * 1_000_003 + index) for index in indices]
        inputs = tuple(torch.cat(column) for column in zip(*(sample for sample, _ in drawn), strict=True))
        names = [item.name for item in spec.inputs]
        by_name = {str(name): tensor for name, tensor in zip(names, inputs, strict=True)}
        return (by_name if any(names) else inputs), torch.cat([target for _, target in drawn])

    return fetch


def _draw(spec: ModelSpec, output: Tensor, seed: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Draw one sample: its inputs, and a class (or a value) for each of the model's outputs."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    inputs = tuple(draw_input(item, 1, generator) for item in spec.inputs)
    if spec.task.loss in ("mse", "bce"):
        values = torch.rand(output.shape, generator=generator)
        return inputs, values if spec.task.loss == "mse" else values.round()
    classes = output.shape[1] if output.ndim > 1 else 1
    return inputs, torch.randint(0, classes, (1, *output.shape[2:]), generator=generator)


def _example_output(spec: ModelSpec, trust: bool) -> Tensor:
    """Return what the model puts out for one sample, for its shape."""
    model = build_model(spec, trust=trust)
    floats = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    args, kwargs = example_inputs(spec, dtype=next(floats, None))
    try:
        with torch.no_grad():
            return main_output(model(*args, **kwargs))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"`random:` samples do not fit the model: {reason}. Check [input] in the spec, or `--input`."
        ) from error
