"""Where the time and the memory of `prunecli prune` go, stage by stage.

Each run has a process of its own, from the start of Python to the table on standard output; the stages are
those that a listener hears of. What a stage imports counts there. A second process takes one forward and
backward pass by itself; the peaks of both are counted from when everything is imported, and what the
pass needs beside the weights is taken off. Networks of torchvision get random weights, sample models have
their own and their data. Stages that were not there in an older revision count with the one before.

    python -m benchmarks.prune
    python -m benchmarks.prune vit_b_16 --method taylor-fo --samples 32
    python -m benchmarks.prune resnet18 --against ../older --repeats 7
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).parents[1]
NETWORKS = ("digits_mlp", "digits_cnn", "digits_resnet", "resnet18", "mobilenet_v3_large", "densenet121")
MOST_OF_TIME = 0.5
"""What the proof and the export to ONNX should take at most, together."""
MOST_OF_WEIGHTS = 2.2
"""How often the weights should be held at most, beside what a forward and backward pass takes."""
STAGES = {
    "import": "import", "reading": "load", "finding groups": "groups", "scoring": "score", "planning": "plan",
    "cutting": "cut", "proving": "proof", "packing": "pack", "exporting to ONNX": "onnx",
    "reporting": "report", "writing": "write", "showing": "report",
}  # fmt: skip
"""What a listener hears -> the column that it counts in; what is not here goes on with the stage before."""
COLUMNS = tuple(dict.fromkeys(STAGES.values()))


@dataclass(frozen=True)
class Task:
    """What a process does; plain values, since they go to it as JSON."""

    checkpoint: str
    spec: str | None
    data: str | None
    out: str
    method: str
    keep: str
    batch: int
    threads: int


@dataclass
class Course:
    """How one run went. It is the listener of that run, too."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    """Bytes of resident memory at most, by stage."""
    imported: int = 0
    """Bytes of resident memory when everything was imported."""

    def begin(self, started: float) -> None:
        """Start with the time at which the process was asked for."""
        self.at, self.at_cpu, self.column = started, 0.0, "import"

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Begin another stage, or go on with one."""
        if STAGES.get(stage, self.column) != self.column:
            self.change(STAGES[stage])

    def change(self, column: str) -> None:
        """Close a stage, and begin the next one."""
        now, now_cpu = time.monotonic(), time.process_time()
        self.seconds[self.column] = self.seconds.get(self.column, 0.0) + now - self.at
        self.cpu[self.column] = self.cpu.get(self.column, 0.0) + now_cpu - self.at_cpu
        self.peaks[self.column] = max(self.peaks.get(self.column, 0), peak_since_reset())
        if self.column == "import":
            self.imported = resident("VmRSS")
        self.at, self.at_cpu, self.column = time.monotonic(), time.process_time(), column

    def note(self, text: str) -> None:
        """Hear nothing."""

    detail = warn = note

    def tick(self, tick: object) -> None:
        """Hear nothing."""

    def epoch(self, row: object, epochs: int) -> None:
        """Hear nothing."""

    @property
    def share(self) -> float:
        """What the proof and the export took of the whole."""
        return (self.seconds["proof"] + self.seconds["onnx"]) / sum(self.seconds.values())

    @property
    def peak(self) -> int:
        """How far resident memory rose above what it was when everything was imported."""
        return max(self.peaks.values()) - self.imported


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or one of its processes."""
    options = _parser().parse_args(arguments)
    if options.once:
        sys.path[:] = [each for each in sys.path if Path(each) != Path(__file__).parent]  # hides `trace`
        work = {"prune": _prune_once, "pass": _pass_once}[options.once]
        print(json.dumps(work(Task(**json.loads(options.task)), options.started)))
        return 0
    revisions = {"": str(ROOT), **({"older": options.against} if options.against else {})}
    print(f"{'':<22}{'all':>8} {''.join(f'{each:>8}' for each in COLUMNS)}   proof+onnx    memory")
    for name in options.names or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            task = _task(name, Path(folder), options)
            runs: dict[str, list[Course]] = {label: [] for label in revisions}
            for turn in range(options.repeats):
                for label in sorted(revisions, reverse=bool(turn % 2)):
                    runs[label].append(Course(**_in_process("prune", task, revisions[label])))
            alone = _in_process("pass", task, str(ROOT))
        for label, courses in runs.items():
            print(_row(f"{name} {label}".strip(), courses, alone), flush=True)
        if options.against:
            print(_ratios(name, runs[""], runs["older"]), flush=True)
    print(
        "\nall: median seconds by the clock; then the median share of it. proof+onnx: their share, and its"
        f" quartiles (at most {MOST_OF_TIME:.0%}).\nmemory: how often the weights are held beside what a"
        f" forward and backward pass takes (at most {MOST_OF_WEIGHTS}), of how many MiB; in which stage."
    )
    return 0


def peak_since_reset() -> int:
    """Return the peak of resident memory since the last call, where the system can tell."""
    peak = resident("VmHWM")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak


def resident(name: str) -> int:
    """Return bytes of resident memory: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _task(name: str, folder: Path, options: Namespace) -> Task:
    """Make the checkpoint of a network; sample models have one."""
    common = (str(folder), options.method, options.keep, options.batch, options.threads)
    sample = ROOT / "sample_models" / name
    if sample.is_dir():
        return Task(str(next(sample.glob("model.*t*s*"), sample / "model.pt")), None, None, *common)
    import torch

    from benchmarks.networks import build

    path = folder / f"{name}.pt"
    torch.save(build(name).state_dict(), path)
    return Task(str(path), f"torchvision:{name}", f"random:{options.samples}", *common)


def _in_process(work: str, task: Task, revision: str) -> dict[str, Any]:
    """Do one thing in a new process, with the package of one revision."""
    words = [sys.executable, __file__, "--once", work, "--task", json.dumps(asdict(task))]
    done = subprocess.run(
        [*words, "--started", repr(time.monotonic())],
        env={**os.environ, "PYTHONPATH": revision, "OMP_NUM_THREADS": str(task.threads)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _prune_once(task: Task, started: float) -> dict[str, Any]:
    course = Course()
    course.begin(started)
    import prunecli.cli.main  # noqa: F401 - which the command imports first
    from prunecli.cli.options import Shown
    from prunecli.cli.tables import show_report
    from prunecli.pipeline import settings
    from prunecli.pipeline.prune import prune

    course.change("load")
    choices = settings.Choices(
        source=settings.Source(spec=task.spec),
        samples=settings.Samples(data=task.data, batch_size=task.batch),
        importance=settings.Importance(method=(task.method,)),
        budget=settings.Budget(keep=task.keep),
        machine=settings.Machine(device="cpu", threads=task.threads),
        files=settings.Files(out=task.out, force=True),
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        pruned = prune(task.checkpoint, choices, course)
        course.progress("showing", 0, None)
        show_report(pruned.report, pruned.files, Shown())
    course.change("")
    return asdict(course)


def _pass_once(task: Task, _: float) -> dict[str, Any]:
    """Load a model and differentiate its loss, by PyTorch alone; return the bytes that it takes."""
    import torch

    import prunecli
    from prunecli.importance import undisturbed  # noqa: F401 - so that as much is imported
    from prunecli.model import example_inputs
    from prunecli.pipeline.prune import prune  # noqa: F401

    imported = resident("VmRSS")
    torch.set_num_threads(task.threads)
    spec = prunecli.read_spec(task.spec or Path(task.checkpoint).with_name("model.toml"))
    model = prunecli.load_model(spec, task.checkpoint)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    args, kwargs = example_inputs(spec, batch=task.batch)
    before = resident("VmRSS")
    peak_since_reset()
    model(*args, **kwargs).square().mean().backward()
    return {"weights": weights, "extra": peak_since_reset() - before, "all": resident("VmHWM") - imported}


def _row(label: str, courses: Sequence[Course], alone: dict[str, Any]) -> str:
    whole = [sum(course.seconds.values()) for course in courses]
    shares = {
        column: median(
            course.seconds.get(column, 0) / total for course, total in zip(courses, whole, strict=True)
        )
        for column in COLUMNS
    }
    columns = "".join(f"{100 * shares[column]:>7.1f}%" for column in COLUMNS)
    both = [course.share for course in courses]
    low, middle, high = quantiles(both, n=4) if len(both) > 1 else both * 3
    highest = max(courses[0].peaks, key=lambda stage: courses[0].peaks[stage])
    held = (median(course.peak for course in courses) - alone["extra"]) / alone["weights"]
    spread = f"{100 * middle:.0f}% ({100 * low:.0f} to {100 * high:.0f})"
    return (
        f"{label:<22}{median(whole):>6.1f} s {columns}   {spread}"
        f"    {held:.2f} of {alone['weights'] / 2**20:.0f} ({highest}; pass {alone['extra'] / 2**20:.0f})"
    )


def _ratios(name: str, new: Sequence[Course], old: Sequence[Course]) -> str:
    """Return how long each stage takes over what it took, in the median of pairs; and the peaks."""

    def ratio(column: str | None) -> str:
        pairs = [
            [sum(each.cpu.values()) if column is None else each.cpu.get(column, 0.0) for each in pair]
            for pair in zip(new, old, strict=True)
        ]
        found = [now / then for now, then in pairs if then]
        return f"{median(found):>8.2f}" if found else f"{'':>8}"

    peaks = median(now.peak / then.peak for now, then in zip(new, old, strict=True))
    return f"{name + ' new/older, CPU':<22} {ratio(None)}{''.join(map(ratio, COLUMNS))}   peak {peaks:.2f}"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="sample models, or networks of torchvision")
    parser.add_argument("--method", default="taylor-fo", help="how units are scored (taylor-fo)")
    parser.add_argument("--samples", type=int, default=64, help="made-up pictures for torchvision's (64)")
    parser.add_argument("--batch", type=int, default=16, help="samples in a batch (16)")
    parser.add_argument("--keep", default="0.5", help="which share of the units stays (0.5)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--against", metavar="FOLDER", help="another revision, run in turns with this one")
    parser.add_argument("--once", choices=("prune", "pass"), help="do it once, in this process")
    parser.add_argument("--task", help="what a process does, as JSON")
    parser.add_argument("--started", type=float, default=0.0, help="when a process was asked for")
    return parser


if __name__ == "__main__":
    sys.exit(main())
