"""Latency: models take turns, and each is compared with the first of the same run."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from prunecli.pipeline.listener import Silent
from prunecli.pipeline.timing import time_in_turns, torch_runner


def test_the_runners_take_turns_and_the_order_turns_round() -> None:
    calls: list[str] = []
    time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 4, Silent())
    rounds = [calls[i : i + 2] for i in range(0, len(calls), 2)]
    assert len(rounds) == 4 + 3  # three to warm up
    assert all(sorted(each) == ["a", "b"] for each in rounds)
    assert ["a", "b"] in rounds
    assert ["b", "a"] in rounds


def test_quartiles_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def taking(*seconds: float) -> object:
        left = [1.0] * 3 + list(seconds)

        def run() -> None:
            clock[0] += left.pop(0)

        return run

    slow, fast = time_in_turns([taking(4, 2, 8, 6), taking(1, 1, 4, 3)], 4, Silent())  # type: ignore[list-item]
    assert (slow.low, slow.median, slow.high, slow.ratio) == (3500, 5000, 6500, 1)
    assert (fast.low, fast.median, fast.high, fast.ratio) == (1000, 2000, 3250, 0.5)


def test_one_run_has_no_spread() -> None:
    (timing,) = time_in_turns([lambda: None], 1, Silent())
    assert timing.low == timing.median == timing.high


def test_a_model_runs_without_gradients() -> None:
    class Looking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(torch.is_inference_mode_enabled())
            return x

    modes: list[bool] = []
    torch_runner(Looking(), ((torch.zeros(1),), {}), torch.device("cpu"))()
    assert modes == [True]
