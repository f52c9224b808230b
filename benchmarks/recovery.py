"""Accuracy after one cut without training: methods x budgets x (plain, recalibrated, re-solved).

The networks are the pretrained ones for CIFAR-10 of `benchmarks/cifar`, their data those of the folder
given (`../shared/data` by default). Importance and recovery see training images only; accuracy is that on
test images. Rows go to a file as they are found; a run that is interrupted goes on from there.

    python -m benchmarks.recovery
    python -m benchmarks.recovery resnet56 --methods fisher --budgets 0.5 --test 10000
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from prunecli import apply_plan, find_groups, load_model, make_plan, read_spec, score
from prunecli.data import batches, evaluate, loss_function, open_data
from prunecli.graph.structure import Structure
from prunecli.importance import Scores
from prunecli.recovery import recalibrate_norms, reconstruct
from prunecli.spec import ModelSpec

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
METHODS = ("random", "magnitude", "bn-scale", "fpgm", "taylor-fo", "taylor-so", "i-spasp", "fisher")
BUDGETS = ("0.85", "0.7", "0.5", "0.35")


@dataclass(frozen=True)
class Row:
    """One cut: its top-1 as it is, recalibrated and re-solved; seconds by the clock."""

    network: str
    method: str
    budget: str
    test_images: int
    images: int
    dense: float
    plain: float
    recalibrated: float
    re_solved: float
    score_seconds: float
    re_solve_seconds: float

    @property
    def key(self) -> tuple[object, ...]:
        """What was asked for."""
        return self.network, self.method, self.budget, self.test_images, self.images


@dataclass(frozen=True, eq=False)
class Bench:
    """A network, its data, and how much of these is used."""

    network: str
    spec: ModelSpec
    model: nn.Module
    structure: Structure
    images: int
    test: int
    data: Path

    @staticmethod
    def open(network: str, options: argparse.Namespace) -> Bench:
        """Load a network."""
        spec = read_spec(HERE / "cifar" / f"{network}.toml")
        model = load_model(spec, options.data / "checkpoints" / f"akamaster_{network}_cifar10.safetensors")
        structure = find_groups(model, (torch.zeros(1, 3, 32, 32),))
        return Bench(network, spec, model.eval(), structure, options.images, options.test, options.data)

    def sample(self) -> list[tuple[tuple[Tensor, ...], Any]]:
        """Return the training images that importance and recovery see."""
        source = f"npz:{self.data / 'cifar10_train10k.npz'}[:{self.images}]"
        found = batches(open_data(source, self.spec), 64)
        return [(inputs, targets) for inputs, targets in found if isinstance(inputs, tuple)]

    def accuracy(self, model: nn.Module) -> float:
        """Return the top-1 on test images."""
        source = f"npz:{self.data / 'cifar10_test.npz'}[:{self.test}]"
        return evaluate(model, batches(open_data(source, self.spec), 250), self.spec).top1 or 0.0

    def score(self, method: str) -> Scores:
        """Score all units."""
        loss = loss_function(self.spec)
        return score(self.model, self.structure, self.sample(), loss, [method])[method]

    def row(self, scores: Scores, seconds: float, budget: str, dense: float) -> Row:
        """Cut, recover both ways, and measure."""
        plan = make_plan(self.structure, scores, budget=f"macs={budget}")
        cut = apply_plan(self.model, self.structure, plan)
        inputs = [each for each, _ in self.sample()]
        recalibrated, _ = recalibrate_norms(cut, inputs)
        start = perf_counter()
        whole = tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
        re_solved, _ = reconstruct(self.model, cut, self.structure, plan.kept(), whole)
        taken = perf_counter() - start
        plain, after, solved = (self.accuracy(model) for model in (cut, recalibrated, re_solved))
        return Row(
            self.network, scores.method, budget, self.test, self.images,
            dense, plain, after, solved, seconds, taken,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    if not options.data.is_dir():
        print(f"{options.data} is not there: name the folder of the data with --data", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    rows = _read(options.out)
    for network in options.networks:
        for row in _rows(network, options, rows):
            rows[row.key] = row
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            print(_text(row), file=sys.stderr, flush=True)
    print(_table(rows.values()))
    return 0


def _rows(
    network: str, options: argparse.Namespace, known: Mapping[tuple[object, ...], Row]
) -> Iterator[Row]:
    bench, dense = Bench.open(network, options), None
    for method in options.methods:
        wanted = [
            b for b in options.budgets if (network, method, b, options.test, options.images) not in known
        ]
        if not wanted:
            continue
        dense = bench.accuracy(bench.model) if dense is None else dense
        start = perf_counter()
        scores = bench.score(method)
        seconds = perf_counter() - start
        for budget in wanted:
            yield bench.row(scores, seconds, budget, dense)


def _read(path: Path) -> dict[tuple[object, ...], Row]:
    if not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row.key: row for row in rows}


def _text(row: Row) -> str:
    return (
        f"{row.network} {row.method} macs={row.budget}: plain {row.plain:.4f}, recalibrated "
        f"{row.recalibrated:.4f}, re-solved {row.re_solved:.4f} ({row.score_seconds:.0f} s to score, "
        f"{row.re_solve_seconds:.0f} s to re-solve)"
    )


def _table(rows: Any) -> str:
    """Return a table in Markdown: a row per network and method, the three accuracies per budget."""
    by_pair: dict[tuple[str, str, int, int], dict[str, Row]] = {}
    for row in rows:
        by_pair.setdefault((row.network, row.method, row.test_images, row.images), {})[row.budget] = row
    budgets = sorted({row.budget for found in by_pair.values() for row in found.values()}, reverse=True)
    lines = [
        "| network | method | test / sample | " + " | ".join(f"{b} of MACs" for b in budgets) + " |",
        "|---|---|---|" + "---|" * len(budgets),
    ]
    for (network, method, test, images), found in by_pair.items():
        cells = [_cell(found[budget]) if budget in found else "" for budget in budgets]
        lines.append(f"| {network} | {method} | {test} / {images} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in (row.plain, row.recalibrated, row.re_solved))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["resnet20", "resnet56"], metavar="NETWORK")
    parser.add_argument("--methods", nargs="*", default=METHODS, metavar="NAME")
    parser.add_argument("--budgets", nargs="*", default=BUDGETS, metavar="SHARE")
    parser.add_argument(
        "--images", type=int, default=512, help="training images to score and recover on (512)"
    )
    parser.add_argument("--test", type=int, default=2000, help="test images (2000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data (../shared/data)")
    parser.add_argument(
        "--out", type=Path, default=Path("recovery.jsonl"), help="file of rows (recovery.jsonl)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
