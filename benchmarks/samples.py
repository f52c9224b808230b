"""How much memory `prune` takes of its own, by the number of samples that it scores and measures accuracy on.

A tiny network is scored by `taylor-fo` on N samples chosen at random, cut, and measured twice on all of
them, in a process of its own. The samples are an npz file, which is mapped, or made one after another by
an IterableDataset. Memory is told as in `benchmarks.streaming`.

    python -m benchmarks.samples --counts 1e4 1e5 1e6 1e7
    python -m benchmarks.samples --source stream --counts 1e4 1e5 1e6
"""

from __future__ import annotations

import sys
import zipfile
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.streaming import peak_of

_CODE = """
import torch
from torch import nn
from torch.utils.data import IterableDataset

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

class Stream(IterableDataset):
    def __iter__(self):
        number = 0
        while True:
            yield torch.full((1, 4, 4), number % 256, dtype=torch.uint8), number % 10
            number += 1
"""
_SPEC = """[model]
factory = "net.py:net"
[input]
shape = [1, 4, 4]
"""
_BLOCK = 100_000


def main() -> None:
    """Prune on more and more samples, and print what it took."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=float, nargs="+", default=[1e4, 1e5, 1e6])
    parser.add_argument("--source", choices=("npz", "stream"), default="npz")
    parser.add_argument("--folder", help="where the files go for a while")
    asked = parser.parse_args()
    print("| samples | bytes | anonymous | to the first | resident | seconds |")
    print("|---:|---:|---:|---:|---:|---:|")
    first = 0
    for count in map(int, asked.counts):
        with TemporaryDirectory(dir=asked.folder) as name:
            folder = Path(name)
            torch.manual_seed(0)
            (folder / "net.py").write_text(_CODE, encoding="utf-8")
            (folder / "net.toml").write_text(_SPEC, encoding="utf-8")
            weights = {"1.weight": (32, 16), "1.bias": (32,), "3.weight": (10, 32), "3.bias": (10,)}
            save_file({key: torch.randn(shape) for key, shape in weights.items()}, folder / "net.safetensors")
            size = write(folder / "a.npz", count) if asked.source == "npz" else 0
            source = f"npz:{folder / 'a.npz'}" if size else f"{folder / 'net.py'}:Stream[:{count}]"
            found = peak_of(command(folder, source, count))
            first = first or found.anonymous
            print(
                f"| {count:,} | {size / 1e6:,.0f} MB | {found.anonymous / 1e6:,.0f} MB | "
                f"{found.anonymous / first:.3f} | {found.resident / 1e6:,.0f} MB | {found.seconds:.0f} |",
                flush=True,
            )


def write(path: Path, count: int) -> int:
    """Write that many images and labels, a block in memory at a time; return how many bytes that is."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, shape, high in (("images", (count, 1, 4, 4), 256), ("labels", (count,), 10)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, count, _BLOCK):
                    block = (min(_BLOCK, count - start), *shape[1:])
                    file.write(rng.integers(0, high, block, dtype=np.uint8).tobytes())
    return path.stat().st_size


def command(folder: Path, source: str, count: int) -> list[str]:
    """Return how `prune` is called."""
    checkpoint, out = str(folder / "net.safetensors"), str(folder / "small.safetensors")
    data = ["--data", source, "--test-data", source, "--samples", str(count), "--batch-size", "4096"]
    rest = ["--out", out, "--keep", "0.5", "--threads", "1", "--no-onnx", "-q"]
    return [sys.executable, "-m", "prunecli", "prune", checkpoint, *data, *rest]


if __name__ == "__main__":
    main()
