"""Models that take turns on one batch -> how long each takes, and how that compares with the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunecli.export.to_onnx import Inputs
from prunecli.pipeline.listener import Listener
from prunecli.report import Timing

_WARM_UP = 3


def time_in_turns(runners: Sequence[Callable[[], object]], runs: int, listener: Listener) -> list[Timing]:
    """Time calls that take turns, so that whatever disturbs the machine disturbs all of them.

    Each run calls every runner once, in an order that turns round by one from run to run.

    Args:
        runners: What to time; the first is what the others are compared with.
        runs: How often, after a few that do not count.
        listener: Hears of progress.
    """
    times: list[list[float]] = [[] for _ in runners]
    for run in range(-_WARM_UP, runs):
        listener.progress("latency", max(run, 0), runs)
        for i in range(len(runners)):
            which = (i + run) % len(runners)
            start = time.perf_counter()
            runners[which]()
            if run >= 0:
                times[which].append(1000 * (time.perf_counter() - start))
    return [_timing(own, times[0]) for own in times]


def torch_runner(model: nn.Module, inputs: Inputs, device: torch.device) -> Callable[[], object]:
    """Return what runs a model once, to its end: on another device, that is waited for."""
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)

    def run() -> Any:
        with torch.inference_mode():
            model(*args, **kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    return run


def _timing(own: Sequence[float], first: Sequence[float]) -> Timing:
    low, high = (own[0], own[0]) if len(own) < 2 else quantiles(own, n=4, method="inclusive")[::2]
    ratios = [a / b for a, b in zip(own, first, strict=True)]
    return Timing(low=low, median=median(own), high=high, ratio=median(ratios))
