"""Rank-based pruning while training (METHODS 7.2): test accuracy cut by cut, against other rankings.

Trains the same network from the same seeds with the lowest, random or the highest units gone, and once
without a cut. Rows go to a file as they are found, and are not found twice.

    python -m benchmarks.rank_based --spec benchmarks/specs/mnist_mlp.toml
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from prunecli.pipeline.finetune import train_new
from prunecli.pipeline.settings import Choices, Directed, Files, Importance, Machine, Samples, Source
from prunecli.recipe import Recipe

METHODS = ("contribution", "random", "contribution-inverse")
DENSE = "dense"
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    spec: str
    schedule_arg: tuple[str, ...]
    method_arg: tuple[str, ...]
    recipe: Recipe
    batch_size: int

    def arguments(self, method: str) -> tuple[str, ...]:
        """Return what `--method-arg` says, for the methods that know it."""
        return self.method_arg if method.startswith("contribution") else ()

    def key(self, method: str, seed: int) -> str:
        """Return what tells runs apart."""
        recipe, arguments = self.recipe, self.arguments(method)
        parts = (*arguments, *self.schedule_arg, recipe.epochs, recipe.lr, self.batch_size, seed)
        return " ".join(map(str, (self.spec, method, *parts)))


def one_run(setting: Setting, method: str, seed: int) -> Row:
    """Return what the cuts did, and how good the network was in the end."""
    with tempfile.TemporaryDirectory() as folder:
        choices = Choices(
            source=Source(spec=setting.spec),
            samples=Samples(batch_size=setting.batch_size),
            machine=Machine("cpu", threads=1, seed=seed),
            files=Files(out=f"{folder}/net.safetensors", onnx=False, verify=False),
            recipe=setting.recipe,
        )
        if method != DENSE:
            choices = replace(
                choices,
                importance=Importance((method,), setting.arguments(method)),
                directed=Directed("contribution", setting.schedule_arg),
            )
        training = train_new(choices).report.training
    assert training is not None
    last = training.rows[-1]
    return {
        "epochs": len(training.rows),
        "train": last.top1,
        "test": last.test_top1,
        "cuts": training.figures.get("by_cut", []),
    }


def main() -> None:
    """Print, per method, accuracy in the end, and right behind each cut and recovered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--method-arg", nargs="*", default=(), help="for contribution and its inverse")
    parser.add_argument("--schedule-arg", nargs="*", default=("warm=30", "every=10"))
    parser.add_argument("--epochs", type=int, default=111, help="no cut comes later")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, default=Path("build/rank_based.jsonl"))
    asked = parser.parse_args()
    recipe = Recipe(asked.epochs, lr=asked.lr, lr_schedule="constant", momentum=0.0, weight_decay=0.0)
    setting = Setting(
        asked.spec, tuple(asked.schedule_arg), tuple(asked.method_arg), recipe, asked.batch_size
    )
    found: dict[str, list[Row]] = {}
    for seed in range(asked.seeds):
        for method in asked.methods:
            found.setdefault(method, []).append(_known(asked.rows, setting, method, seed))
        epochs = found[asked.methods[0]][-1]["epochs"]  # with all of the recovery
        dense = replace(setting, recipe=replace(recipe, epochs=epochs))
        found.setdefault(DENSE, []).append(_known(asked.rows, dense, DENSE, seed))
    _show_ends(found)
    _show_cuts({method: rows for method, rows in found.items() if method != DENSE})


def _known(path: Path, setting: Setting, method: str, seed: int) -> Row:
    """Return a row of the file, or find it and add it."""
    key = setting.key(method, seed)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows: dict[str, Row] = dict(map(json.loads, lines))
    if key not in rows:
        rows[key] = one_run(setting, method, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, rows[key]]) + "\n")
    return rows[key]


def _show_ends(found: dict[str, list[Row]]) -> None:
    dense = mean(row["test"] for row in found[DENSE])
    print("| units removed | epochs | test | train | test, to dense |")
    print("|---|---:|---:|---:|---:|")
    for method, rows in found.items():
        test, train = ([row[part] for row in rows] for part in ("test", "train"))
        gap = f"{100 * (mean(test) - dense):+.2f}"
        print(f"| {method} | {rows[0]['epochs']} | {_spread(test)} | {_spread(train)} | {gap} |")


def _show_cuts(found: dict[str, list[Row]]) -> None:
    print(
        "\n| units gone | widths | "
        + " | ".join(f"{method}: before, cut, recovered" for method in found)
        + " |"
    )
    print("|---:|---|" + "---:|" * len(found))
    first = next(iter(found.values()))[0]["cuts"]
    for number, cut in enumerate(first):
        cells = []
        for rows in found.values():
            parts = [
                [row["cuts"][number]["test_top1"][part] for row in rows]
                for part in ("before", "cut", "recovered")
            ]
            cells.append(" / ".join(f"{100 * mean(values):.2f}" for values in parts))
        widths = "-".join(map(str, cut["widths"].values()))
        print(f"| {cut['share_gone']:.1%} | {widths} | " + " | ".join(cells) + " |")


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
