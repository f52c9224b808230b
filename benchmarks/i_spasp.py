"""i-SpaSP with and without its learning step: on made-up activations, and on a two-layer net for MNIST.

The data of MNIST are the four idx files in the folder given (`../shared/data/mnist` by default).

    python -m benchmarks.i_spasp synthetic
    python -m benchmarks.i_spasp mnist
    python -m benchmarks.i_spasp mnist --arguments truncate=contribution
    python -m benchmarks.i_spasp mnist --hidden 10000 --sizes 100 1000 --seeds 1
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli import find_groups, score
from prunecli.graph.cutting import cut
from prunecli.graph.structure import Structure
from prunecli.importance import build_methods
from prunecli.importance.i_spasp import selections
from prunecli.importance.sparse_columns import Reader, Trains, learn, loss_of
from prunecli.recovery import learn_readers

DATA = Path(__file__).parents[2] / "shared" / "data" / "mnist"
GROUP = "hidden"
BATCH = 128


@dataclass(frozen=True)
class Row:
    """One made-up problem: squared errors over |U|^2, of the base method and after each iteration."""

    width: int
    p: float
    size: int
    base: float
    course: tuple[float, ...]
    overlap: float
    """Share of the units that both select."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.what == "synthetic":
        print(synthetic_table(options.seeds))
        return 0
    if not options.data.is_dir():
        print(f"{options.data} is not there: name the folder of MNIST with --data", file=sys.stderr)
        return 2
    print(mnist_table(options))
    return 0


def synthetic_table(seeds: int) -> str:
    """Return the table: means over the seeds."""
    lines = [
        "| width | p | s | base | trained, after 1 / 2 / 5 / 10 / 20 iterations | best W | same units |",
        "|---:|---:|---:|---:|---|---:|---:|",
    ]
    for width in (100, 200):
        for p in (0.3, 0.5, 0.7, 0.9):
            for size in (5, 20):
                found = [synthetic(width, p, size, seed) for seed in range(seeds)]
                course = " / ".join(
                    f"{mean(row.course[min(t, len(row.course) - 1)] for row, _ in found):.1e}"
                    for t in (1, 2, 5, 10, 20)
                )
                base, overlap = mean(row.base for row, _ in found), mean(row.overlap for row, _ in found)
                best = mean(least for _, least in found)
                lines.append(
                    f"| {width} | {p} | {size} | {base:.1e} | {course} | {best:.1e} | {overlap:.0%} |"
                )
    return "\n".join(lines)


def synthetic(width: int, p: float, size: int, seed: int) -> tuple[Row, float]:
    """Return what both methods make of row-compressible H, and the least-squares error on the units learned.

    The i-th largest row of H sums up to i^(-1/p) (METHODS 6.1); W is Gaussian.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(width, width, generator=generator, dtype=torch.float64)
    hidden *= (torch.arange(1, width + 1) ** (-1 / p) / hidden.sum(1))[:, None]
    hidden = hidden[torch.randperm(width, generator=generator)]
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64)
    sums, reader = hidden.sum(1), Reader(hidden @ hidden.T, weight, torch.arange(width))
    base = selections(weight.T @ weight * sums, sums, torch.tensor([size]))[0]
    learned = learn([reader], width, size)
    energy = learned.energy
    row = Row(
        width, p, size, 2 * loss_of([reader], (weight * base,)) / energy,
        tuple(2 * loss / energy for loss in learned.losses), float((base & learned.support).sum()) / size,
    )  # fmt: skip
    best = torch.zeros_like(weight)
    best[:, learned.support] = weight @ hidden @ torch.linalg.pinv(hidden[learned.support])
    return row, 2 * loss_of([reader], (best,)) / energy


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of pixels in [0, 1], and digits."""

    pixels: Tensor
    digits: Tensor

    @staticmethod
    def read(folder: Path, name: str) -> Images:
        """Read two idx files."""
        pixels = _idx(folder / f"{name}-images-idx3-ubyte.gz", header=16).reshape(-1, 784)
        digits = _idx(folder / f"{name}-labels-idx1-ubyte.gz", header=8)
        return Images(torch.from_numpy(pixels).float() / 255, torch.from_numpy(digits).long())

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield them once, shuffled."""
        for part in torch.randperm(len(self.digits), generator=generator).split(BATCH):
            yield self.pixels[part], self.digits[part]

    def accuracy(self, model: nn.Module) -> float:
        """Return the top-1."""
        with torch.no_grad():
            return float((model(self.pixels).argmax(1) == self.digits).double().mean())


def _idx(path: Path, header: int) -> NDArray[np.uint8]:
    content = bytearray(gzip.decompress(path.read_bytes()))  # tensors want memory that can be written to
    found: NDArray[np.uint8] = np.frombuffer(content, dtype=np.uint8, offset=header)
    return found


class TwoLayers(nn.Module):
    """784-hidden-10 without biases: ReLU behind the hidden layer, nothing behind the output."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, hidden, bias=False)
        self.output = nn.Linear(hidden, 10, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.output(self.hidden(pixels).relu())
        return logits


def train(model: nn.Module, images: Images, epochs: int, seed: int) -> nn.Module:
    """Train in place by Adam (betas .9 and .99), rate 1e-3 / (1 + epochs so far); return the model."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    per_epoch = -(-len(images.digits) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / per_epoch))
    for _ in range(epochs):
        for pixels, digits in images.batches(generator):
            optimizer.zero_grad()
            cross_entropy(model(pixels), digits).backward()
            optimizer.step()
            schedule.step()
    return model


@dataclass(frozen=True, eq=False)
class Study:
    """A dense net, and the images that it is cut on."""

    model: TwoLayers
    structure: Structure
    sample: Images
    arguments: Mapping[str, str]
    """Of the method with the learning step."""

    def base(self, size: int) -> NDArray[np.bool_]:
        """Return what i-SpaSP selects."""
        with torch.no_grad():
            sums = self.model.hidden(self.sample.pixels).relu().double().sum(0)
        weight = self.model.output.weight.detach().double()
        found: NDArray[np.bool_] = selections(weight.T @ weight * sums, sums, torch.tensor([size]))[0].numpy()
        return found

    def learned(self, size: int) -> NDArray[np.bool_]:
        """Return what i-SpaSP with its learning step selects."""
        width = self.model.hidden.out_features
        found = score(
            self.model, self.structure, [self._batch], None, ["i-spasp-train"],
            method_args={**self.arguments, "keep": size / width}, micro_batch=1024,
        )["i-spasp-train"]  # fmt: skip
        selected: NDArray[np.bool_] = (found.by_group[GROUP] >= 1).numpy()
        return selected

    def variants(self, size: int) -> Iterator[tuple[str, nn.Module, float]]:
        """Yield the nets cut to a size, each with the squared error of its output over |U|^2."""
        base, learned = self.base(size), self.learned(size)
        for name, selected in (("base", base), ("original", learned)):
            plain = cut(self.model, self.structure, {GROUP: selected})
            yield name, plain, self._error(plain)
        plain = cut(self.model, self.structure, {GROUP: learned})
        method = build_methods(["i-spasp-train"], self.arguments)["i-spasp-train"]
        assert isinstance(method, Trains)
        trained, done = learn_readers(
            self.model, plain, self.structure, {GROUP: learned}, [self._batch], method.course,
            micro_batch=1024,
        )  # fmt: skip
        assert done.selected == (GROUP,)
        yield "trained", trained, self._error(trained)

    def _error(self, smaller: nn.Module) -> float:
        """Return the squared error of the output on the sample, over |U|^2."""
        with torch.no_grad():
            dense = self.model(self.sample.pixels)
            return float((smaller(self.sample.pixels) - dense).square().sum() / dense.square().sum())

    @property
    def _batch(self) -> tuple[tuple[Tensor], Tensor]:
        return (self.sample.pixels,), self.sample.digits


def mnist_table(options: argparse.Namespace) -> str:
    """Return the table: accuracies in percent, means over the seeds."""
    training, test = (Images.read(options.data, name) for name in ("train", "t10k"))
    dense: list[float] = []
    cells: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = TwoLayers(options.hidden)
        train(model, training, options.epochs, seed)
        dense.append(test.accuracy(model))
        print(f"seed {seed}: dense {dense[-1]:.2%}", file=sys.stderr, flush=True)
        sample = Images(training.pixels[: options.images], training.digits[: options.images])
        structure = find_groups(model, (torch.zeros(1, 784),))
        study = Study(model, structure, sample, dict(each.split("=") for each in options.arguments))
        for size in options.sizes:
            start = perf_counter()
            for name, smaller, error in study.variants(size):
                before = test.accuracy(smaller)
                after = test.accuracy(train(smaller, training, options.finetune, seed))
                cells.setdefault((size, name), []).append((error, before, after))
            print(f"seed {seed}: {size} units, {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return _mnist_text(dense, cells)


def _mnist_text(dense: list[float], cells: Mapping[tuple[int, str], list[tuple[float, float, float]]]) -> str:
    lines = [
        f"Dense: {', '.join(f'{100 * each:.2f}' for each in dense)} %.",
        "",
        "| s | variant | error of the outputs | before fine-tuning | after |",
        "|---:|---|---:|---:|---:|",
    ]
    for (size, name), found in cells.items():
        error, before, after = (mean(column) for column in zip(*found, strict=True))
        lines.append(f"| {size} | {name} | {error:.4f} | {100 * before:.2f} | {100 * after:.2f} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.i_spasp", description=__doc__)
    parser.add_argument("what", choices=("synthetic", "mnist"))
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of MNIST (%(default)s)")
    parser.add_argument("--hidden", type=int, default=1000, help="hidden units (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 50, 100, 200], help="units to keep")
    parser.add_argument(
        "--arguments", nargs="*", default=[], metavar="NAME=VALUE", help="of the method that trains"
    )
    parser.add_argument("--images", type=int, default=10000, help="images to select on (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="of the dense net (%(default)s)")
    parser.add_argument("--finetune", type=int, default=3, help="epochs after the cut (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
