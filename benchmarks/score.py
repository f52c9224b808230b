"""What scoring by each method costs, over a plain forward and backward pass on the same micro-batches.

The plain pass differentiates the same loss with respect to all parameters, in the same mode. Both take
turns in one process, and each pair gives one ratio. For the peaks of memory, each runs in a process of
its own (Linux) that gives freed memory back at once (glibc); what it held before the first micro-batch is not
counted. `--method all` is every method of units and of single weights, but the oracles, whose cost is the
subject of benchmarks/oracle.py. Weights are scored once, without the steps that some methods prune in.

    python -m benchmarks.score
    python -m benchmarks.score vgg11 --batch 4 --repeats 15 --no-memory
    python -m benchmarks.score resnet18 --method all --size 64 --batches 1 --repeats 3
    python -m benchmarks.score densenet121 --method taylor-fo fpgm weight:snip
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from statistics import median, quantiles
from time import perf_counter, process_time

import torch
from torch.nn.functional import cross_entropy

from benchmarks.networks import build, image_size, parser_of, pictures
from benchmarks.prune import peak_since_reset, resident
from prunecli import find_groups, score
from prunecli.errors import PruneError
from prunecli.importance import Granularity
from prunecli.pipeline.methods import all_methods
from prunecli.weights import Lender, Sample, prunable_weights, score_weights

NETWORKS = ("resnet18", "resnet50", "vgg11")
GOAL = 1.05
"""What the ratios of times and of peaks should not exceed for `taylor-fo`."""
LEFT_OUT = ("oracle", "oracle-combinatorial")
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc return every larger piece when it is freed, so that resident memory is memory in use."""

WEIGHT = "weight:"

Pass = Callable[[], object]
Seconds = tuple[float, float]
"""By the clock, and of CPU time."""


@dataclass(frozen=True)
class Setting:
    """What is run."""

    name: str
    method: str
    """With `weight:` before it for scores of single weights."""
    size: int
    batch: int
    batches: int
    threads: int

    def passes(self) -> tuple[Pass, Pass]:
        """Return the plain pass over the sample, and scoring on it."""
        torch.set_num_threads(self.threads)
        model, targets = build(self.name, self.size), torch.arange(self.batch)
        batches = [((pictures(self.size, self.batch, seed=seed),), targets) for seed in range(self.batches)]
        structure = find_groups(model, (pictures(self.size, 1),))

        def plain() -> None:
            for inputs, labels in batches:
                model.zero_grad(set_to_none=True)
                torch.autograd.backward(cross_entropy(model(*inputs), labels))
            model.zero_grad(set_to_none=True)

        def of_units() -> None:
            score(model, structure, batches, cross_entropy, [self.method], micro_batch=self.batch)

        def of_weights() -> None:
            score_weights(
                Lender(
                    model,
                    structure,
                    ((pictures(self.size, 1),), {}),
                    prunable_weights(model, structure),
                    self.method.removeprefix(WEIGHT),
                    sample=Sample(batches, cross_entropy, self.batch),
                )
            )

        return plain, of_weights if self.method.startswith(WEIGHT) else of_units


@dataclass(frozen=True)
class Cost:
    """Scoring over the plain pass."""

    setting: Setting
    plain_seconds: float
    wall: tuple[float, ...]
    """Quartiles of the ratio of seconds by the clock."""
    cpu: tuple[float, ...]
    """Quartiles of the ratio of CPU seconds."""
    peaks: tuple[int, int] | None
    """Bytes at most, in the plain pass and in scoring."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    progress = sys.stderr if options.json else sys.stdout
    print(
        f"{'':<10}{'':<24}{'plain pass':>11}  {'ratio of times':<24}  {'of CPU times':<24}  of peaks",
        file=progress,
    )
    costs = []
    for name in options.names:
        size = image_size(name, options.size)
        for method in _every_method() if "all" in options.method else options.method:
            setting = Setting(name, method, size, options.batch, options.batches, options.threads)
            try:
                costs.append(measure(setting, options.repeats, memory=not options.no_memory))
            except PruneError as error:
                print(f"{name:<10}{method:<24}refused: {str(error)[:100]}", file=progress, flush=True)
                continue
            print(_row(costs[-1]), file=progress, flush=True)
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
    else:
        print(f"\nmedian (and quartiles) of scoring over the plain pass; goal for taylor-fo: at most {GOAL}")
    return 0


def _every_method() -> list[str]:
    return [
        f"{WEIGHT if info.granularity is Granularity.WEIGHT else ''}{info.name}"
        for info in all_methods()
        if info.name not in LEFT_OUT
    ]


def measure(setting: Setting, repeats: int, *, memory: bool) -> Cost:
    """Measure one network."""
    plain, scoring = setting.passes()
    plain(), scoring()  # warm up
    peaks = (_peak_alone(setting, 0), _peak_alone(setting, 1)) if memory else None
    pairs = [_pair(plain, scoring, swap=turn % 2 == 1) for turn in range(repeats)]
    wall = _quartiles([second[0] / first[0] for first, second in pairs])
    cpu = _quartiles([second[1] / first[1] for first, second in pairs])
    return Cost(setting, median(first[0] for first, _ in pairs), wall, cpu, peaks)


def _quartiles(ratios: Sequence[float]) -> tuple[float, ...]:
    """Return the quartiles, which are all the same where there is one ratio."""
    return tuple(quantiles(ratios, n=4) if len(ratios) > 1 else [*ratios, *ratios, *ratios])


def _pair(plain: Pass, scoring: Pass, *, swap: bool) -> tuple[Seconds, Seconds]:
    """Time both, the second one first if `swap`."""
    if swap:
        second, first = _timed(scoring), _timed(plain)
    else:
        first, second = _timed(plain), _timed(scoring)
    return first, second


def _timed(work: Pass) -> Seconds:
    wall, cpu = perf_counter(), process_time()
    work()
    return perf_counter() - wall, process_time() - cpu


def _peak_alone(setting: Setting, which: int) -> int:
    os.environ.update(_GIVE_BACK)  # for the new process; this one has long read it
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(_peak, setting, which).result()


def _peak(setting: Setting, which: int) -> int:
    """Return how far the peak of resident memory rises in one of the passes."""
    work = setting.passes()[which]
    before = resident("VmRSS")
    peak_since_reset()
    work()
    return peak_since_reset() - before


def _row(cost: Cost) -> str:
    wall, cpu = (f"{mid:.3f} ({low:.3f} to {high:.3f})" for low, mid, high in (cost.wall, cost.cpu))
    label = f"{cost.setting.name:<10}{cost.setting.method:<24}"
    row = f"{label}{cost.plain_seconds:>9.2f} s  {wall:<24}  {cpu:<24}  "
    if cost.peaks is None:
        return row.rstrip()
    plain, scoring = cost.peaks
    return f"{row}{scoring / plain:.3f} ({plain / 2**20:.0f} and {scoring / 2**20:.0f} MiB)"


def _parser() -> ArgumentParser:
    parser = parser_of(__doc__, NETWORKS)
    parser.add_argument(
        "--method", nargs="+", default=["taylor-fo"], metavar="METHOD", help="methods, or `all` (taylor-fo)"
    )
    parser.add_argument("--size", type=int, help="height and width of the pictures (224)")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a micro-batch (16)")
    parser.add_argument("--batches", type=int, default=2, help="micro-batches that one measurement takes (2)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of measurements (7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--no-memory", action="store_true", help="measure times only")
    parser.add_argument("--json", action="store_true", help="print JSON; the rows go to standard error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
