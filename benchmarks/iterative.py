"""Loss against neurons pruned, step by step without training (Molchanov et al., 2019, figure 3).

Trains nothing: the weights stay as they are while the lowest units leave, a few at a time, scored anew
before each step on the same training images. Rows go to a file as they are found, and are not found twice.

    python -m benchmarks.iterative lenet3.safetensors --spec benchmarks/specs/lenet3.toml \
        --data npz:../shared/data/cifar10_train10k.npz[:1000]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prunecli.pipeline.prune import prune
from prunecli.pipeline.settings import Budget, Choices, Files, Importance, Machine, Samples, Source, Steps

METHODS = ("oracle", "taylor-so", "taylor-fo", "obd", "magnitude", "random")
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def loss_curve(
    checkpoint: str, spec: str, data: str, method: str, units: int, minibatches: int, seed: int, keep: float
) -> list[tuple[int, float]]:
    """Return (units left, mean training loss) before each step of pruning by one method."""
    with tempfile.TemporaryDirectory() as folder:
        choices = Choices(
            source=Source(spec=spec),
            samples=Samples(train_data=data, test_data=data, batch_size=100),
            importance=Importance(method=(method,)),
            budget=Budget(keep=str(keep), rank="score"),
            machine=Machine(threads=1, seed=seed),
            files=Files(out=f"{folder}/curve.safetensors", onnx=False, verify=False),
            steps=Steps(step_units=str(units), prune_every=minibatches, score_momentum=0.0, tune=False),
        )
        training = prune(checkpoint, choices).report.training
    assert training is not None
    return [(int(left), float(loss)) for left, loss in training.figures["loss_by_units"]]


def at_share(curve: Sequence[tuple[int, float]], share: float) -> float:
    """Return the loss where at least that share of the units is left, and no more than need be."""
    dense = curve[0][0]
    return [loss for units, loss in curve if units >= share * dense][-1]


def main() -> None:
    """Print one row per method: the mean over seeds of the loss at each share of units left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--spec", required=True)
    parser.add_argument(
        "--data", help="source of the training images, such as npz:train.npz[:1000]", required=True
    )
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--units", type=int, default=1, help="units that go at each step")
    parser.add_argument("--minibatches", type=int, default=50, help="of 100 images, per step")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--keep", type=float, default=0.3, help="where to stop")
    parser.add_argument("--rows", type=Path, default=Path("build/iterative.jsonl"))
    asked = parser.parse_args()
    known = _read(asked.rows)
    digest = hashlib.sha256(Path(asked.checkpoint).read_bytes()).hexdigest()[:12]
    shares = [share for share in SHARES if share >= asked.keep]
    print("| method | " + " | ".join(f"{share:.0%} left" for share in shares) + " |")
    print("|---|" + "---:|" * len(shares))
    for method in asked.methods:
        curves = []
        for seed in range(asked.seeds):
            key = f"{digest} {method} {asked.units} {asked.minibatches} {seed} {asked.keep} {asked.data}"
            if key not in known:
                known[key] = loss_curve(
                    asked.checkpoint,
                    asked.spec,
                    asked.data,
                    method,
                    asked.units,
                    asked.minibatches,
                    seed,
                    asked.keep,
                )
                asked.rows.parent.mkdir(parents=True, exist_ok=True)
                with asked.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, known[key]]) + "\n")
            curves.append(known[key])
        cells = [sum(at_share(curve, share) for curve in curves) / len(curves) for share in shares]
        print(f"| {method} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |", flush=True)


def _read(path: Path) -> dict[str, list[tuple[int, float]]]:
    if not path.exists():
        return {}
    return {
        key: [(int(units), float(loss)) for units, loss in curve]
        for key, curve in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    }


if __name__ == "__main__":
    main()
