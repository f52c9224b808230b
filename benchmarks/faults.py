"""Commands that get a signal at random points: are their files whole or absent, and what is left beside them?

Every command runs to its end first, into an empty folder and, with `--force`, over the files of another run;
that says which bytes are right, and which file operations it makes there. Then it is started again and
again, and gets the signal: half of the times at a moment drawn at random, half just before one of those
operations. Each file must be absent, or what it was before, or what it should become. Trials are forks of
one process, so that torch is imported once; this needs Linux or macOS. With `--together` no signal is sent:
each command runs twice at once, with other settings, into one folder, whose files must be of one of the two.

    python -m benchmarks.faults --trials 400
    python -m benchmarks.faults --trials 160 --together
    python -m benchmarks.faults --trials 40 --signal TERM --commands prune export --seed 1
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from prunecli.cli.main import main as run_and_exit
from prunecli.cli.main import run
from prunecli.export.unfinished import finish_renames

SAMPLES = Path(__file__).parents[1] / "sample_models"
QUICK = ("--threads", "1", "--device", "cpu", "-q")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "prune": ("prune", "model.pt", "--method", "magnitude", "--keep", "{half}", "--out", "{out}", *QUICK),
    "finetune": (
        "finetune", "model.pt", "--epochs", "1", "--batch-size", "256", "--weight-decay", "{half}",
        "--no-onnx", "--out", "{out}", *QUICK,
    ),
    "train": (
        "train", "--spec", "model.toml", "--epochs", "1", "--batch-size", "256", "--weight-decay", "{half}",
        "--no-onnx", "--out", "{out}", *QUICK,
    ),
    "prune-steps": (
        "prune", "model.pt", "--keep", "{half}", "--steps", "2", "--batch-size", "256", "--lr", "0.1",
        "--prune-every", "1", "--epochs", "1", "--no-onnx", "--out", "{out}", *QUICK,
    ),
    "score": (
        "score", "model.pt", "--method", "magnitude", "--method", "random", "--seed", "{seed}",
        "--out", "{out}/scores.safetensors", *QUICK,
    ),
    "sweep": (
        "sweep", "model.pt", "--method", "random", "--keep", "{half}", "--out", "{out}", *QUICK,
    ),
    "init": ("init", "model.pt", "--data", "random:{seed}", "--out", "{out}/new.toml", "-q"),
    "export": (
        "export", "{small}", "--onnx", "{out}/net.onnx", "--safetensors", "{out}/net.safetensors",
        "--loader", "{out}/load.py", "--spec", "model.toml", "-q",
    ),
    "compress-report": (
        "compress-report", "model.pt", "{small}", "--out", "{out}/report.html", "--out", "{out}/report.json",
        "--out", "{out}/report.csv", "--spec", "model.toml", "--threads", "1", "-q",
    ),
}  # fmt: skip
HALVES = ("0.4", "0.5")
"""A setting that makes the files of the earlier run differ from those of the one that gets the signal."""
OPERATIONS = ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir")
"""Audit events of Python that are counted when they touch the output folder."""


@dataclass
class Tally:
    """What became of the trials of one command."""

    where: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    mixed: int = 0
    """Trials after which some files are new, and others absent or those of the earlier run."""
    mixed_for_good: int = 0
    """Those of which that is still so once somebody has read a file there."""
    parts: int = 0
    """Temporary files that were left."""
    corrupt: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials and print a table; return 1 if a file was corrupt."""
    options = _parser().parse_args(arguments)
    draw = random.Random(options.seed)
    number = getattr(signal, f"SIG{options.signal}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        shutil.copytree(SAMPLES / "digits_mlp", work / "digits_mlp")
        shutil.copy(SAMPLES / "digits.npz", work)
        os.chdir(work / "digits_mlp")
        for half in HALVES:  # in this very process: what that imports, no child imports again
            with redirect_stdout(io.StringIO()):
                run(Attempt("prune", work / f"small{half}", half).words)
        tallies: dict[str, Tally] = {}
        each = max(1, options.trials // (2 * len(options.commands)))
        for name in options.commands:
            for over in (False, True):
                label = f"{name} --force" if over else name
                if options.together:
                    tallies[label] = _try_together(name, over, each, draw, work)
                    print(_row_together(label, tallies[label]), flush=True)
                    continue
                tallies[label] = _try(name, over, each, number, draw, work)
                print(_row(label, tallies[label]), flush=True)
        for line in (line for tally in tallies.values() for line in tally.corrupt):
            print(line)
    return int(any(tally.corrupt for tally in tallies.values()))


class Attempt:
    """One run of a command in a forked process, whose operations in the output folder are counted.

    Args:
        name: Which command.
        out: The output folder.
        half: One of `HALVES`.
        force: Whether it may replace files.
    """

    def __init__(self, name: str, out: Path, half: str, force: bool = False) -> None:
        small = out.parent / f"small{half}" / "model.pruned.safetensors"
        values = {"out": str(out), "half": half, "small": str(small), "seed": half[-1]}
        self.words = [word.format(**values) for word in COMMANDS[name]] + ["--force"] * force
        self.out = out
        self.count = mmap.mmap(-1, 8)
        """Shared with the child: how many operations there were."""

    def finish(self) -> int:
        """Run to the end, and return how many operations there were.

        Raises:
            RuntimeError: the command failed.
        """
        code = os.waitstatus_to_exitcode(os.waitpid(self.start(), 0)[1])
        if code:
            raise RuntimeError(f"`{' '.join(self.words)}` exits with {code}")
        return self.done

    def start(self, at: int = 0, number: int = 0) -> int:
        """Start the child; it sends itself a signal before operation `at`, counted from 1. Return its id."""
        child = os.fork()
        if child:
            return child
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        sys.addaudithook(lambda event, details: self._count(event, details, at, number))
        sys.argv[1:] = self.words
        code = 1
        try:
            run_and_exit()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)

    @property
    def done(self) -> int:
        """How many operations there were."""
        return int.from_bytes(self.count[:8], "little")

    def _count(self, event: str, details: tuple[Any, ...], at: int, number: int) -> None:
        touched = event in OPERATIONS and any(
            isinstance(each, (str, os.PathLike)) and os.fspath(each).startswith(str(self.out))
            for each in details
        )
        if not touched:
            return
        if self.done + 1 == at:
            os.kill(os.getpid(), number)
        self.count[:8] = (self.done + 1).to_bytes(8, "little")


def _try(name: str, over: bool, trials: int, number: int, draw: random.Random, work: Path) -> Tally:
    """Run one command to its end, then kill it again and again."""
    before, after = _alone(name, work)
    out, tally = work / "out", Tally()
    for trial in range(trials + 1):
        shutil.rmtree(out, ignore_errors=True)
        if over:
            shutil.copytree(before, out)
        attempt = Attempt(name, out, HALVES[1], over)
        if not trial:  # the one that says how long it takes
            start = time.monotonic()
            total, seconds = attempt.finish(), time.monotonic() - start
            continue
        at = draw.randint(1, total) if trial % 2 else 0
        child = attempt.start(at, number)
        if not at:
            _send_later(child, draw.uniform(0, seconds), number)
        tally.codes[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] += 1
        tally.where[_where(attempt.done, total)] += 1
        _judge(tally, out, before if over else None, after)
    return tally


def _alone(name: str, work: Path) -> tuple[Path, Path]:
    """Run one command to its end with each setting, into a folder of its own."""
    folders = work / "before", work / "after"
    for folder, half in zip(folders, HALVES, strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        Attempt(name, folder, half).finish()
    return folders


def _try_together(name: str, force: bool, trials: int, draw: random.Random, work: Path) -> Tally:
    """Run one command twice at once, again and again; `files` counts whose files are there."""
    before, after = _alone(name, work)
    out, tally = work / "out", Tally()
    names = [path.name for path in after.iterdir() if path.is_file()]
    for _ in range(trials):
        shutil.rmtree(out, ignore_errors=True)
        children = []
        for half in draw.sample(HALVES, 2):
            children.append(Attempt(name, out, half, force).start())
            time.sleep(draw.uniform(0, 0.05))
        tally.codes.update(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        became = {_became(out / each, before / each, after / each) for each in names}
        whose = became.pop() if len(became) == 1 else "mixed"
        tally.files[whose] += 1
        if whose not in ("old", "new"):
            tally.corrupt.append(f"{name}: files of two runs")
        tally.parts += sum(1 for _ in out.rglob("*.part"))
    return tally


def _send_later(child: int, seconds: float, number: int) -> None:
    """Send a signal to a child that has not been waited for, and so is still known by its id."""
    time.sleep(seconds)
    os.kill(child, number)


def _where(done: int, total: int) -> str:
    return "before" if not done else "while" if done < total else "after"


def _judge(tally: Tally, out: Path, before: Path | None, after: Path) -> None:
    """Compare every file with what it may be, and again after what was begun is finished."""
    tally.mixed += _is_mixed(out, before, after)
    if out.is_dir():
        finish_renames(out)
    tally.mixed_for_good += _is_mixed(out, before, after)
    for path in sorted(each for each in after.rglob("*") if each.is_file()):
        name = path.relative_to(after)
        became = _became(out / name, before / name if before else None, path)
        tally.files[became] += 1
        if became in ("lost", "corrupt"):
            tally.corrupt.append(f"{became}: {name}")
    tally.parts += sum(1 for _ in out.rglob("*.part"))


def _is_mixed(out: Path, before: Path | None, after: Path) -> bool:
    """Say whether the result, beside which may be the folder of a run, is of two runs."""
    names = [path.name for path in after.iterdir() if path.is_file()]
    became = {_became(out / name, before / name if before else None, after / name) for name in names}
    return "new" in became and len(became) > 1


def _became(found: Path, earlier: Path | None, expected: Path) -> str:
    """Say in a word what became of a file; those of a run may stand anywhere on its way, but whole."""
    is_of_run = found.parent.suffix == ".run"
    if not found.exists():
        return "lost" if earlier is not None and not is_of_run else "absent"
    content = found.read_bytes()
    if content == expected.read_bytes():
        return "new"
    if earlier is not None and content == earlier.read_bytes():
        return "old"
    return "new" if is_of_run and _is_whole(found) else "corrupt"


def _is_whole(path: Path) -> bool:
    """Say whether a file of a run can be read to its end."""
    try:
        match path.suffix:
            case ".safetensors":
                load_file(path)
            case ".jsonl":
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            case ".svg":
                ElementTree.fromstring(path.read_text(encoding="utf-8"))
    except (ValueError, SafetensorError, ElementTree.ParseError):
        return False
    return True


def _row(label: str, tally: Tally) -> str:
    """Return one row of the table."""
    where, files = (
        "  ".join(f"{name} {table[name]:>4}" for name in names)
        for table, names in (
            (tally.where, ("before", "while", "after")),
            (tally.files, ("new", "old", "absent", "lost", "corrupt")),
        )
    )
    codes = " ".join(f"{code}:{count}" for code, count in sorted(tally.codes.items()))
    return (
        f"{label:<24} trials {tally.codes.total():>4}  came {where}  | files {files}  | mixed {tally.mixed}, "
        f"{tally.mixed_for_good} for good  "
        f"left .part {tally.parts}  | exit codes {codes}"
    )


def _row_together(label: str, tally: Tally) -> str:
    """Return one row of the table of runs at once."""
    codes = " ".join(f"{code}:{count}" for code, count in sorted(tally.codes.items()))
    files = f"of the one {tally.files['old']:>3}, of the other {tally.files['new']:>3}"
    return (
        f"{label:<24} twice at once {tally.files.total():>4}  | files {files}, of both {len(tally.corrupt)}  "
        f"left .part {tally.parts}  | exit codes {codes}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200, help="in all; half of them over files that exist")
    parser.add_argument("--signal", choices=("KILL", "TERM", "HUP", "INT"), default="KILL")
    parser.add_argument("--commands", nargs="+", choices=tuple(COMMANDS), default=tuple(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="send no signal; run each twice at once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
