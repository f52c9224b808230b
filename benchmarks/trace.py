"""How long it takes to find the groups of a network, stage by stage, and how that grows with depth.

Seconds are CPU seconds on one thread, which other work on the machine disturbs less than it disturbs
the clock; nothing here waits. The networks take turns, so that a slow minute hits them all.

    python -m benchmarks.trace
    python -m benchmarks.trace resnet50 --blocks 50 100 200 --repeats 9
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import linear_regression, median
from time import process_time
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import build, image_size, parser_of, pictures, residual_network
from prunecli.graph.build import build as build_draft
from prunecli.graph.probe import freeze_what_fails
from prunecli.graph.solve import solve
from prunecli.graph.trace import trace

NETWORKS = ("resnet50", "densenet201", "swin_t", "vit_b_16")
BLOCKS = (50, 100, 200, 400)
STAGES = ("trace", "solve", "build", "probe", "all")
"""Where a cut on trial fails, groups are found again: those rounds count as `probe`."""
GOAL = 1.3
"""What the exponent of the growth with depth should not exceed."""

Result = TypeVar("Result")
Network = Callable[[], tuple[nn.Module, Tensor]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    networks: dict[str, Network] = {name: partial(_from_torchvision, name) for name in options.names}
    networks |= {f"residual-{blocks}": partial(_residual, blocks) for blocks in options.blocks}
    seconds = measure(networks, options.repeats)
    exponent = growth([(blocks, seconds[f"residual-{blocks}"]["all"]) for blocks in options.blocks])
    if options.json:
        print(json.dumps({"seconds": seconds, "growth_exponent": exponent}, indent=2))
    else:
        print("\n".join(_table(seconds)))
        if exponent is not None:
            print(f"\ntime grows as depth to the power of {exponent:.2f} (goal: at most {GOAL})")
    return 0


def measure(networks: Mapping[str, Network], repeats: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of every stage for every network."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    for turn in range(repeats + 1):
        for name, network in networks.items():
            found = time_stages(*network())
            if turn:  # the first one warms up
                runs[name].append(found)
    return {
        name: {stage: median(found[stage] for found in all_found) for stage in STAGES}
        for name, all_found in runs.items()
    }


def time_stages(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Return the seconds of every stage of `find_groups` for one network."""
    args = (example,)
    traced, tracing = _timed(lambda: trace(model, args))
    solution, solving = _timed(lambda: solve(traced.constraints))
    _, building = _timed(lambda: build_draft(traced, solution))
    _, rest = _timed(lambda: freeze_what_fails(traced, args, {}))
    found = (tracing, solving, building, rest - solving - building, tracing + rest)
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


def _from_torchvision(name: str) -> tuple[nn.Module, Tensor]:
    return build(name), pictures(image_size(name), 1)


def _residual(blocks: int) -> tuple[nn.Module, Tensor]:
    return residual_network(blocks), pictures(32, 1)


def _table(seconds: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield f"{'CPU seconds':<14}" + "".join(f"{stage:>13}" for stage in STAGES)
    for name, stages in seconds.items():
        yield f"{name:<14}" + "".join(f"{stages[stage]:>13.3f}" for stage in STAGES)


def _parser() -> ArgumentParser:
    parser = parser_of(__doc__, NETWORKS)
    parser.add_argument(
        "--blocks", type=int, nargs="*", default=BLOCKS, metavar="N",
        help=f"depths of residual networks ({', '.join(map(str, BLOCKS))})",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="measurements; the median is printed (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
