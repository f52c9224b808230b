"""The same cut by prunecli and by torch-pruning: seconds, memory, and whether the result still runs.

One shot: the half of every layer's channels with the smallest L2 norms goes, the classifier's outputs stay.
For prunecli that is `find_groups` (trace, groups, probe), `score`, `make_plan` and `apply_plan`; for
torch-pruning, the construction of a pruner and one `step`. The model is built before, and not counted. Each
tool has a process of its own, they take turns, and each measurement has a limit. Seconds are CPU seconds on
one thread.

    python -m benchmarks.against
    python -m benchmarks.against resnet18 residual-200 --repeats 5 --limit 120
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import network
from prunecli.budget import make_plan
from prunecli.graph.groups import find_groups
from prunecli.importance.engine import score
from prunecli.plan import Scope
from prunecli.surgery import apply_plan

NETWORKS = (
    *("resnet18", "resnet50", "vgg16", "mobilenet_v2", "mobilenet_v3_large", "densenet121", "densenet201"),
    *(
        "efficientnet_b0",
        "convnext_tiny",
        "regnet_y_400mf",
        "googlenet",
        "inception_v3",
        "vit_b_16",
        "swin_t",
    ),
    *("residual-50", "residual-100", "residual-200", "residual-400", "residual-1000"),
    *("dense-12", "dense-25", "dense-50", "dense-100", "dense-200", "wide-20000"),
)
STAGES = ("build", "score", "prune", "all")
"""`build` ends when groups are known; `prune` decides which units go, and takes them out."""

Measured = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or one measurement of it."""
    options = _parser().parse_args(arguments)
    found = {}
    workers = {tool: _Worker(tool, options.limit) for tool in TOOLS}
    try:
        for name in options.names:
            found[name] = compare(name, workers, options.repeats)
            if not options.json:
                print("\n".join(_rows(name, found[name])), flush=True)
    finally:
        for worker in workers.values():
            worker.stop()
    if options.json:
        print(json.dumps(found, indent=2))
    return 0


def compare(name: str, workers: Mapping[str, _Worker], repeats: int) -> dict[str, list[Measured]]:
    """Measure both tools in turn; one that failed is not tried again."""
    runs: dict[str, list[Measured]] = {tool: [] for tool in workers}
    for _ in range(repeats):
        for tool, found in runs.items():
            if not found or "failure" not in found[-1]:
                found.append(workers[tool].measure(name))
    return runs


def measure(tool: str, name: str) -> Measured:
    """Cut one network by one tool; return seconds per stage, and the growth of the peak of memory in MiB."""
    model, example = network(name)
    gc.collect()
    before = _peak(afresh=True)
    try:
        smaller, seconds = TOOLS[tool](model, example)
    except Exception as error:  # whatever the tool raises
        return {"failure": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    found: Measured = {**seconds, "all": sum(seconds.values()), "memory": _peak() - before}
    found["parameters"] = sum(parameter.numel() for parameter in smaller.parameters())
    try:
        with torch.no_grad():
            smaller.eval()(example)
    except Exception as error:
        found["failure"] = f"does not run: {str(error).splitlines()[0]}"
    return found


def _by_prunecli(model: nn.Module, example: Tensor) -> tuple[nn.Module, dict[str, float]]:
    start = process_time()
    structure = find_groups(model, (example,))
    found = process_time()
    scores = score(model, structure, methods=("magnitude",))["magnitude"]
    scored = process_time()
    smaller = apply_plan(model, structure, make_plan(structure, scores, budget="keep=0.5", scope=Scope.LAYER))
    return smaller, {"build": found - start, "score": scored - found, "prune": process_time() - scored}


def _by_torch_pruning(model: nn.Module, example: Tensor) -> tuple[nn.Module, dict[str, float]]:
    import torch_pruning

    scoring = 0.0

    class Timed(torch_pruning.importance.MagnitudeImportance):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal scoring
            begun = process_time()
            values = super().__call__(*args, **kwargs)
            scoring += process_time() - begun
            return values

    start = process_time()
    pruner = torch_pruning.pruner.MetaPruner(
        model, example, importance=Timed(p=2), pruning_ratio=0.5, ignored_layers=_classifiers(model, example)
    )
    built = process_time()
    pruner.step()
    rest = process_time() - built
    return model, {"build": built - start, "score": scoring, "prune": rest - scoring}


TOOLS: Mapping[str, Callable[[nn.Module, Tensor], tuple[nn.Module, dict[str, float]]]] = {
    "prunecli": _by_prunecli,
    "torch-pruning": _by_torch_pruning,
}


def _classifiers(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Return the layers that make as many outputs as the network has."""
    with torch.no_grad():
        outputs = model(example).shape[-1]
    return [
        module
        for module in model.modules()
        if outputs in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
        and outputs in (10, 1000)
    ]


def _peak(*, afresh: bool = False) -> float:
    """Return the most memory, in MiB, that this process has held since it was last asked afresh (Linux)."""
    if afresh:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


class _Worker:
    """A process that measures one tool; one that takes too long or dies is replaced."""

    def __init__(self, tool: str, limit: float) -> None:
        self.tool, self.limit = tool, limit
        self._process: SpawnProcess | None = None

    def measure(self, name: str) -> Measured:
        if self._process is None:
            self._start()
        self._pipe.send(name)
        if not self._pipe.poll(self.limit):
            self.stop()
            return {"failure": f"not done after {self.limit:.0f} s"}
        try:
            measured: Measured = self._pipe.recv()
        except EOFError:
            self.stop()
            return {"failure": "the process died"}
        return measured

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(self.tool, other), daemon=True)
        self._process.start()
        other.close()
        self._pipe.recv()


def _work(tool: str, pipe: Connection) -> None:
    """Measure every network that is asked for."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    TOOLS[tool](*network("residual-4"))  # what is imported on first use, is not counted
    pipe.send("ready")
    while True:
        pipe.send(measure(tool, pipe.recv()))


def _rows(name: str, runs: Mapping[str, Sequence[Measured]]) -> Iterator[str]:
    """Yield one row per tool, and the ratios of theirs to ours, run by run."""
    for tool, found in runs.items():
        timed = [each for each in found if "all" in each]
        row = f"{name:<20}{tool:<15}"
        for stage in STAGES:
            row += f"{median(each[stage] for each in timed):>8.3f}" if timed else f"{'':>8}"
        row += f"{max(each['memory'] for each in timed):>9.0f} MiB" if timed else ""
        yield f"{row}  {found[-1].get('failure', 'runs')}"
    pairs = zip(*runs.values(), strict=False)
    ratios = sorted(
        theirs["all"] / ours["all"] for ours, theirs in pairs if "all" in ours and "all" in theirs
    )
    if ratios:
        yield f"{name:<20}theirs/ours    {median(ratios):>8.2f}   ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=NETWORKS, metavar="NAME",
        help="networks of torchvision, residual-BLOCKS, dense-LAYERS, wide-UNITS",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each (3)")
    parser.add_argument("--limit", type=float, default=60, help="seconds that one measurement may take (60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
