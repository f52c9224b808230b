"""Masks of new networks, without training: what compression they really have, and which layers they empty.

Every method that scores weights, and every compression ratio, on VGG-16 and ResNet-56 for CIFAR-10; scores
that look at data see batches of 128 images of the file given (`../shared/data/cifar10_train10k.npz`).

    python -m benchmarks.foresight
    python -m benchmarks.foresight vgg16 --seeds 3 --ratios 32 64 --score-bn train
    python -m benchmarks.foresight resnet56 --with-obd --ratios 32
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.cifar.resnet import ResNet
from benchmarks.cifar.vgg import VGG
from prunecli import find_groups
from prunecli.costs import describe
from prunecli.importance import Granularity, ScoreBN, build_methods, methods
from prunecli.importance.registry import MethodInfo
from prunecli.plan import Scope
from prunecli.report import MaskFacts, mask_facts
from prunecli.weights import (
    Lender,
    MaskRule,
    Masks,
    Sample,
    Selection,
    WeightBudget,
    choose_masks,
    prunable_weights,
    score_weights,
)

DATA = Path(__file__).parents[2] / "shared" / "data" / "cifar10_train10k.npz"
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"vgg16": VGG, "resnet56": partial(ResNet, 9)}
RATIOS = (1, 2, 4, 8, 16, 32, 64)
BATCH = 128
SLOW = ("obd",)
LAYERED = ("random", "magnitude", "gradient", "activation", "lap")
"""Methods that the thesis ranks within layers too."""


@dataclass(frozen=True)
class Row:
    """One way to make masks."""

    info: MethodInfo
    selection: Selection = field(default_factory=Selection)
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the table calls it."""
        said = [f"{name}={value}" for name, value in self.arguments.items()]
        said += ["by layer"] if self.selection.scope is Scope.LAYER else []
        said += ["two-sided"] if self.selection.rule is MaskRule.TWO_SIDED else []
        return ", ".join((f"`{self.info.name}`", *said))


@dataclass(frozen=True, eq=False)
class Images:
    """Normalised images and their classes."""

    pixels: Tensor
    labels: Tensor

    @staticmethod
    def read(path: Path) -> Images:
        """Read as many as any method wants."""
        with np.load(path, allow_pickle=False) as file:
            pixels, labels = (torch.from_numpy(file[name][: 16 * BATCH]) for name in ("images", "labels"))
        average = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        spread = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        return Images((pixels.float() / 255 - average) / spread, labels.long())

    def sample(self, method: object) -> Sample:
        """Return one batch, or as many as a method wants."""
        classes = len(self.labels.unique())
        balanced = ceil(4 * getattr(method, "per_class", 0) * classes / BATCH)
        count = balanced or getattr(method, "wants_batches", 1)
        batches = [
            ((self.pixels[start : start + BATCH],), self.labels[start : start + BATCH])
            for start in range(0, count * BATCH, BATCH)
        ]
        return Sample(batches, cross_entropy, BATCH)


@dataclass(frozen=True, eq=False)
class Network:
    """A new network, and what its masks are made from."""

    name: str
    seed: int
    images: Images | None
    score_bn: ScoreBN
    stepped: Sequence[int]
    """The ratios for methods that score anew after each of many steps."""

    def found(
        self, rows: Sequence[Row], ratios: Sequence[int]
    ) -> Iterator[tuple[Row, list[MaskFacts | None]]]:
        """Yield what masks leave, for each row and ratio; rows that look at data only where there are any."""
        torch.manual_seed(self.seed)
        model = NETWORKS[self.name]().eval()
        example = (torch.zeros(1, 3, 32, 32),)
        structure, facts = find_groups(model, example), describe(model, example)
        for row in rows:
            if row.info.needs_data and self.images is None:
                continue
            start = perf_counter()
            method = build_methods([row.info.name], row.arguments, Granularity.WEIGHT)[row.info.name]
            lender = Lender(
                model, structure, (example, {}), prunable_weights(model, structure), row.info.name,
                row.arguments, self.images.sample(method) if self.images else None,
                score_bn=self.score_bn, seed=self.seed,
            )  # fmt: skip
            anew = getattr(method, "steps", 1) > 1
            wanted = [ratio for ratio in ratios if not anew or ratio in self.stepped]
            masks = masks_of(lender, row.selection, wanted, anew)
            counts = {ratio: counts_of(each) for ratio, each in zip(wanted, masks, strict=True)}
            yield row, [mask_facts(counts[r], facts, ratio=r) if r in counts else None for r in ratios]
            print(f"{self.name} {row.label}: {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def counts_of(masks: Masks) -> dict[str, tuple[int, int]]:
    """Return how many weights stay, of how many, by parameter."""
    return {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()}


def masks_of(lender: Lender, selection: Selection, ratios: Sequence[int], anew: bool) -> Iterator[Masks]:
    """Yield the masks for each ratio. Where nothing is scored anew under masks, scores are made once."""
    total, others = lender.prunable, lender.structure.parameter_count({}) - lender.prunable
    scores = None if anew else score_weights(lender)[0]
    for ratio in ratios:
        budget = WeightBudget(Fraction(ratio))
        if scores is not None:
            yield selection.masks(scores, budget.count(total, others))
        else:
            yield choose_masks(lender, budget, selection).masks


def rows_of(
    with_slow: bool, only: Sequence[str] = (), arguments: Mapping[str, str] | None = None
) -> list[Row]:
    """Return all ways to make masks, or those of some methods: by layer too, and as was published.

    Args:
        with_slow: Slow methods too.
        only: Names of methods; all, if there are none.
        arguments: Of the methods that take such.
    """
    given = arguments or {}
    return [
        replace(
            row, arguments={**{n: v for n, v in given.items() if n in row.info.arguments}, **row.arguments}
        )
        for row in _every_row(with_slow)
        if not only or row.info.name in only
    ]


def _every_row(with_slow: bool) -> list[Row]:
    rows = []
    for info in methods(Granularity.WEIGHT):
        if info.name not in SLOW or with_slow:
            rows.append(Row(info))
        if info.name in LAYERED:
            rows.append(Row(info, Selection(Scope.LAYER)))
        if info.name == "grasp":
            rows.append(Row(info, Selection(rule=MaskRule.TWO_SIDED)))
        if info.name == "synflow":
            rows.append(Row(info, arguments={"steps": "1"}))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    images = Images.read(options.data) if options.data.is_file() else None
    if images is None:
        print(
            f"{options.data} is not there: methods that look at data are left out (--data)", file=sys.stderr
        )
    given = dict(each.split("=", 1) for each in options.arguments)
    rows = rows_of(options.with_obd, options.methods, given)
    for name in options.names or NETWORKS:
        found: dict[str, list[list[MaskFacts | None]]] = {}
        for seed in range(options.seeds):
            network = Network(name, seed, images, ScoreBN(options.score_bn), options.stepped_ratios)
            for row, facts in network.found(rows, options.ratios):
                found.setdefault(row.label, []).append(facts)
        print(table(name, options.ratios, found), flush=True)
    return 0


def table(name: str, ratios: Sequence[int], found: Mapping[str, Sequence[Sequence[MaskFacts | None]]]) -> str:
    """Return the table of a network: r_e for each ratio and, in brackets, how many layers are empty.

    The error is the largest of (r - r_e) / r, the last column what is left of the thinnest layer at the
    highest ratio; over several seeds, means, but for the errors and the thinnest.
    """
    lines = [
        f"### {name}",
        "",
        f"| method | {' | '.join(f'r = {ratio}' for ratio in ratios)} | largest error | thinnest layer |",
        f"|---|{'---:|' * (len(ratios) + 2)}",
    ]
    for label, seeds in found.items():
        cells = " | ".join(_cell([each for each in column if each]) for column in zip(*seeds, strict=True))
        every = [each for facts in seeds for each in facts if each]
        if not every:
            continue
        worst = max((100 * (each.compression_error or 0) for each in every), key=abs)
        last = max(every, key=lambda facts: facts.ratio or 0).ratio
        layers = [layer for each in every if each.ratio == last for layer in each.layers]
        thinnest = min(layers, key=lambda layer: layer.share)
        left = f"{thinnest.kept:,} of {thinnest.size:,}"
        lines.append(f"| {label} | {cells} | {round(worst, 2) + 0.0:.2f} % | {left} |")
    return "\n".join([*lines, ""])


def _cell(facts: Sequence[MaskFacts]) -> str:
    if not facts:
        return "-"
    ratio = mean(each.effective_ratio or float("inf") for each in facts)
    empty = mean(len(each.collapsed) for each in facts)
    return f"{ratio:.3g}" + (f" **({empty:.3g})**" if empty else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.foresight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)} (both)")
    parser.add_argument("--data", type=Path, default=DATA, help="images and labels (%(default)s)")
    parser.add_argument("--ratios", type=int, nargs="+", default=RATIOS, help="(%(default)s)")
    parser.add_argument(
        "--stepped-ratios", type=int, nargs="+", default=(32, 64),
        help="those for `synflow`, which takes a minute each (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=(), help="only these (all)")
    parser.add_argument(
        "--arguments", nargs="+", default=(), metavar="NAME=VALUE", help="of the methods that take such"
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many networks (%(default)s)")
    parser.add_argument("--score-bn", choices=[each.value for each in ScoreBN], default=ScoreBN.EVAL.value)
    parser.add_argument("--with-obd", action="store_true", help="`obd` too, which is slow")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
