"""What a cut saves in time: dense against pruned, in PyTorch and in onnxruntime, at 1 and 2 threads.

Networks of torchvision with random weights lose half of the units of each group; the time of a network does
not depend on which. Measured as `prunecli compress-report A B --latency` does: the four take turns, and each
turn gives one ratio.

    python -m benchmarks.latency
    python -m benchmarks.latency resnet50 --keep 0.7 --round-to 8 --runs 50
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.networks import build, image_size, parser_of
from prunecli.pipeline.comparing import compare_checkpoints
from prunecli.pipeline.prune import prune
from prunecli.pipeline.report_settings import Latency
from prunecli.pipeline.settings import Budget, Choices, Files, Importance, Machine, Source
from prunecli.report import Report, Timing

NETWORKS = ("resnet18", "resnet50", "mobilenet_v3_large", "vgg11", "vit_b_16")
THREADS = (1, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    print(f"{'':<20}{'MACs':>6}{'threads':>9}{'PyTorch':>26}{'onnxruntime':>26}")
    for name in options.names:
        with TemporaryDirectory() as folder:
            for threads in THREADS:
                report = measure(name, Path(folder), options.keep, options.round_to, options.runs, threads)
                print(_row(name, threads, report), flush=True)
    print("\nmilliseconds of the dense network, and the median ratio of the pruned one to it; one picture")
    return 0


def measure(name: str, folder: Path, keep: str, round_to: int, runs: int, threads: int) -> Report:
    """Prune a network, if that was not done yet, and time both."""
    dense, small = folder / f"{name}.pt", folder / "small.safetensors"
    size = image_size(name)
    source = Source(spec=f"torchvision:{name}", input=(f"3x{size}x{size}",))
    if not dense.exists():
        torch.save(build(name).state_dict(), dense)
        choices = Choices(
            source=source,
            importance=Importance(method=("random",)),
            budget=Budget(keep=keep, scope="layer", round_to=round_to),
            machine=Machine(device="cpu", threads=1),
            files=Files(out=str(small), onnx=False),
        )
        prune(str(dense), choices)
    machine = Machine(device="cpu", threads=threads)
    return compare_checkpoints(
        [str(dense), str(small)], source, machine=machine, timed=Latency(True, latency_runs=runs)
    )


def _row(name: str, threads: int, report: Report) -> str:
    before, after = report.models
    pytorch, onnxruntime = (
        _cell(getattr(before, runtime), getattr(after, runtime)) for runtime in ("pytorch", "onnxruntime")
    )
    return f"{name:<20}{after.facts.macs / before.facts.macs:>6.2f}{threads:>9}{pytorch:>26}{onnxruntime:>26}"


def _cell(dense: Timing | None, small: Timing | None) -> str:
    if dense is None or small is None:
        return "-"
    return f"{dense.median:.1f} ms, x {small.ratio:.2f}"


def _parser() -> ArgumentParser:
    parser = parser_of(__doc__, NETWORKS)
    parser.add_argument("--keep", default="0.5", help="which share of the units stays (0.5)")
    parser.add_argument("--round-to", type=int, default=1, help="widths are multiples of this (1)")
    parser.add_argument("--runs", type=int, default=20, help="turns (20)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
