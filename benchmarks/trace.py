"""How long it takes to find the groups of a network and to cut it, and how that grows with depth and width.

Seconds are CPU seconds on one thread, which other work on the machine disturbs less than it disturbs
the clock; nothing here waits. The networks take turns, so that a slow minute hits them all.

    python -m benchmarks.trace
    python -m benchmarks.trace resnet50 --series residual-50 residual-100 residual-200 --repeats 9
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import linear_regression, median
from time import process_time
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import network
from prunecli.graph.borrowing import uncollected
from prunecli.graph.build import build as build_draft
from prunecli.graph.cutting import cut
from prunecli.graph.probe import freeze_what_fails
from prunecli.graph.solve import solve
from prunecli.graph.trace import trace

NETWORKS = ("resnet50", "densenet201", "swin_t", "vit_b_16", "vit_h_14", "wide-2000", "wide-20000")
SERIES = (
    ("residual-50", "residual-100", "residual-200", "residual-400", "residual-1000"),
    ("dense-12", "dense-25", "dense-50", "dense-100", "dense-200"),
)
"""Networks of one kind, from shallow to deep."""
STAGES = ("trace", "solve", "build", "probe", "cut", "all")
"""Where a cut on trial fails, groups are found again: those rounds count as `probe`. `cut` takes half of the
units of every group out of the network, which has data by then."""
GOAL = 1.2
"""What the exponent of the growth with depth should not exceed."""

Result = TypeVar("Result")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    options.series = SERIES if options.series is None else options.series
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [*options.names, *(name for series in options.series for name in series)]
    seconds = measure(names, options.repeats)
    exponents = {
        series[0].partition("-")[0]: growth([(_depth(name), seconds[name]["all"]) for name in series])
        for series in options.series
    }
    if options.json:
        print(json.dumps({"seconds": seconds, "growth_exponents": exponents}, indent=2))
        return 0
    print("\n".join(_table(seconds)))
    for kind, exponent in exponents.items():
        if exponent is not None:
            print(f"\n{kind}: time grows as depth to the power of {exponent:.2f} (goal: at most {GOAL})")
    return 0


def measure(names: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of every stage for every network."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names if turn else names[:1]:  # the first turn warms up
            found = time_stages(*_blank(name))
            if turn:
                runs[name].append(found)
    return {
        name: {stage: median(found[stage] for found in all_found) for stage in STAGES}
        for name, all_found in runs.items()
    }


def time_stages(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Return the seconds of every stage of `find_groups`, and of a cut, for one network."""
    args = (example,)
    with uncollected():
        traced, tracing = _timed(lambda: trace(model, args))
    solution, solving = _timed(lambda: solve(traced.constraints))
    _, building = _timed(lambda: build_draft(traced, solution))
    with uncollected():
        structure, rest = _timed(lambda: freeze_what_fails(traced, args, {}))
    half = {group.name: np.arange(group.width) < (group.width + 1) // 2 for group in structure.groups}
    with_data = _filled(model)
    _, cutting = _timed(lambda: cut(with_data, structure, half))
    found = (tracing, solving, building, rest - solving - building, cutting, tracing + rest + cutting)
    return dict(zip(STAGES, found, strict=True))


def growth(points: Sequence[tuple[int, float]]) -> float | None:
    """Return b of the least-squares fit seconds = a * depth^b; None for fewer than two depths."""
    if len({depth for depth, _ in points}) < 2:
        return None
    depths, seconds = np.log(np.array(points, dtype=float)).T.tolist()
    return linear_regression(depths, seconds).slope


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Run with nothing left to collect from the work before it."""
    gc.collect()
    start = process_time()
    return work(), process_time() - start


def _blank(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network without data where it can be: groups depend on shapes alone."""
    try:
        with torch.device("meta"):
            return network(name)
    except (NotImplementedError, RuntimeError):  # some read numbers as they are made
        return network(name)


def _filled(model: nn.Module) -> nn.Module:
    """Give a network without data some."""
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(1)
    return model


def _depth(name: str) -> int:
    return int(name.rpartition("-")[2])


def _table(seconds: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield f"{'CPU seconds':<14}" + "".join(f"{stage:>13}" for stage in STAGES)
    for name, stages in seconds.items():
        yield f"{name:<14}" + "".join(f"{stages[stage]:>13.3f}" for stage in STAGES)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=NETWORKS, metavar="NAME",
        help="networks of torchvision, residual-BLOCKS, dense-LAYERS, wide-UNITS",
    )  # fmt: skip
    parser.add_argument(
        "--series", nargs="*", action="append", metavar="NAME",
        help="networks of one kind, from shallow to deep, whose growth is fitted (residual and dense ones)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="measurements; the median is printed (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
