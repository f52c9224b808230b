"""Widths found by activation density while training, against the dense network trained as long.

Each run is `prunecli train` on a small all-convolutional network; accuracy is that on all test images.
Rows go to a file as they are found; runs that are there already are left out.

    python -m benchmarks.activation_density --images 5000 --epochs 12
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import process_time
from typing import Any

from prunecli.data import batches, evaluate, open_data
from prunecli.pipeline.finetune import train_new
from prunecli.pipeline.settings import Choices, Directed, Files, Machine, Samples, Source
from prunecli.recipe import Recipe
from prunecli.spec import read_spec

HERE = Path(__file__).parent
SPEC = HERE / "specs" / "all_conv.toml"
KINDS: Mapping[str, Directed] = {
    "dense": Directed(),
    "reinit": Directed("activation-density"),
    "keep": Directed("activation-density", ("init=keep",)),
}


def run(kind: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train once, and return what a row says."""
    train, test = (f"npz:{options.data}/cifar10_{part}.npz" for part in ("train10k", "test"))
    started = process_time()
    trained = train_new(
        Choices(
            source=Source(spec=str(SPEC)),
            samples=Samples(
                train_data=f"{train}[:{options.images}]", test_data=f"{test}[:1000]", batch_size=64
            ),
            machine=Machine(device="cpu", threads=1, seed=seed),
            recipe=Recipe(epochs=options.epochs, lr=0.05),
            directed=KINDS[kind],
            files=Files(out=str(options.out / f"{kind}-{seed}.safetensors"), onnx=False, force=True),
        )
    )
    seconds = process_time() - started
    spec = read_spec(str(SPEC))
    found = evaluate(trained.model, batches(open_data(test, spec), 250), spec)
    facts = trained.report.training
    assert facts is not None
    assert found.top1 is not None
    return {
        "kind": kind,
        "seed": seed,
        "images": options.images,
        "epochs": options.epochs,
        "top1": found.top1,
        "seconds": seconds,
        "phases": [[phase.name, phase.epochs, phase.best_top1] for phase in facts.phases],
        "totals": {
            phase.name: [row.total_density for row in facts.rows if row.phase == phase.name]
            for phase in facts.phases
        },
        "figures": dict(facts.figures),
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield "| net | seed | nets: epochs, density first -> last | widths | params | MACs | epochs | top-1 |"
    yield "|---|---:|---|---|---:|---:|---:|---:|"
    for row in rows:
        figures = row["figures"]
        nets = "; ".join(
            f"{name} {epochs}" + (f", {totals[0]:.3f} -> {totals[-1]:.3f}" if totals[0] else "")
            for (name, epochs, _), totals in zip(row["phases"], row["totals"].values(), strict=True)
        )
        widths = figures["generations"][-1]["widths"].values() if figures else ()
        params, macs = (figures.get(f"{what}_reduction", 1.0) for what in ("params", "macs"))
        complexity = figures.get("training_complexity", float(row["epochs"]))
        yield (
            f"| {row['kind']} | {row['seed']} | {nets} | {', '.join(map(str, widths))} | {params:.1f}x | "
            f"{macs:.1f}x | {complexity:.1f} | {100 * row['top1']:.2f} % |"
        )


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("activation_density"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in options.seeds:
        for kind in options.kinds:
            key = (kind, seed, options.images, options.epochs)
            if key in [(row["kind"], row["seed"], row["images"], row["epochs"]) for row in rows]:
                continue
            rows.append(run(kind, seed, options))
            with file.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            sys.stderr.write(f"{kind} {seed}: {100 * rows[-1]['top1']:.2f} %\n")
    sys.stdout.write("\n".join(table(rows)) + "\n")


if __name__ == "__main__":
    main()
