"""How much memory `prune` takes of its own, by the size of the checkpoint, with `--streaming` and without.

A tower of perceptrons is written tensor by tensor, pruned to half its units by `magnitude` in a process of
its own, and removed. Memory is what /proc says of that process, every 20 ms: anonymous memory, which is
its own, and resident memory, which has mapped pages of the file too; these can be taken back at any time.

    python -m benchmarks.streaming --gigabytes 0.5 1 2                # both ways, side by side
    python -m benchmarks.streaming --gigabytes 8 --only-streaming     # needs 12 GB of disk for a while
"""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import torch

from benchmarks.specs.tower import tower
from prunecli.export.streamed import StreamedTensors
from prunecli.on_demand import OnDemand

_CODE = Path(__file__).parent / "specs" / "tower.py"
_SPEC = """[model]
factory = "tower.py:tower"
args = {{ blocks = {blocks}, width = {width}, hidden = {hidden} }}
[input]
shape = [64]
"""
_WIDTH, _HIDDEN = 2048, 8192
_ITEM = 4
_GIGABYTE = 1e9


@dataclass(frozen=True)
class Peak:
    """The most that a process held, in bytes, and how long it ran."""

    anonymous: int
    resident: int
    seconds: float


def main() -> None:
    """Prune towers of several sizes, and print what it took."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--only-streaming", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where the files go for a while")
    asked = parser.parse_args()
    with TemporaryDirectory(dir=asked.folder) as folder:
        idle = peak_of([sys.executable, "-c", "import prunecli.pipeline.prune, torchvision"])
        largest = _WIDTH * _HIDDEN * _ITEM
        print(f"idle: {_mb(idle.anonymous)} anonymous, {_mb(idle.resident)} resident; ", end="")
        print(f"largest tensor: {_mb(largest)}\n")
        print(
            "| file | | anonymous | beyond idle / file | beyond idle / largest tensor | resident | seconds |"
        )
        print("|---:|---|---:|---:|---:|---:|---:|")
        for gigabytes in asked.gigabytes:
            size = write(Path(folder), gigabytes)
            for options in (["--streaming"], *([] if asked.only_streaming else [["--no-onnx"]])):
                found = peak_of(command(Path(folder), options, asked.threads))
                own = found.anonymous - idle.anonymous
                print(
                    f"| {size / _GIGABYTE:.2f} GB | `{options[0]}` | {_mb(found.anonymous)} | "
                    f"{own / size:.3f} | {own / largest:.2f} | {_mb(found.resident)} | {found.seconds:.0f} |",
                    flush=True,
                )
            for path in Path(folder).iterdir():
                path.unlink()


def write(folder: Path, gigabytes: float) -> int:
    """Write a tower of random weights and its spec, one tensor in memory at a time; return its size."""
    blocks = max(round(gigabytes * _GIGABYTE / (2 * _WIDTH * _HIDDEN * _ITEM)), 1)
    (folder / "tower.py").write_text(_CODE.read_text(encoding="utf-8"), encoding="utf-8")
    spec = _SPEC.format(blocks=blocks, width=_WIDTH, hidden=_HIDDEN)
    (folder / "net.toml").write_text(spec, encoding="utf-8")
    with torch.device("meta"):
        model = tower(blocks, _WIDTH, _HIDDEN)
    content = StreamedTensors({name: drawn(tensor.shape) for name, tensor in model.named_parameters()}, {})
    with (folder / "net.safetensors").open("wb") as file:
        for chunk in content:
            file.write(chunk)
    return len(content)


def drawn(shape: torch.Size) -> OnDemand:
    """Return a parameter that is drawn when it is written, with a spread that keeps activations in range."""
    spread = (shape[-1] if len(shape) > 1 else 10_000) ** -0.5
    return OnDemand(shape, torch.float32, lambda: torch.empty(shape).uniform_(-spread, 1.1 * spread))


def command(folder: Path, options: list[str], threads: int) -> list[str]:
    """Return how `prune` is called."""
    path, out = str(folder / "net.safetensors"), str(folder / "small.safetensors")
    fixed = ["--keep", "0.5", "--method", "magnitude", "--threads", str(threads), "--force", "-q"]
    return [sys.executable, "-m", "prunecli", "prune", path, "--out", out, *fixed, *options]


def peak_of(arguments: list[str]) -> Peak:
    """Run a process and watch its memory."""
    start = perf_counter()
    anonymous = resident = 0
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for name, size in status_of(process.pid):
                anonymous = max(anonymous, size if name == "RssAnon" else 0)
                resident = max(resident, size if name == "VmHWM" else 0)
            sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return Peak(anonymous, resident, perf_counter() - start)


def status_of(pid: int) -> Iterator[tuple[str, int]]:
    """Yield the sizes in /proc, in bytes; nothing of a process that is over."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            yield name, int(value.split()[0]) * 1024


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
