"""What the oracle costs: units switched off one by one by whole forward passes, over what prunecli does.

The naive loop multiplies what the unit's layers put out by a gate that is zero for it, and runs the whole
network for every unit, as released code does. prunecli records one pass and computes again only what the
unit influences. Both take turns, micro-batch by micro-batch, on the same units; each turn gives one ratio.

    python -m benchmarks.oracle
    python -m benchmarks.oracle --images 128 --units 4
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import torch
from torch import Tensor, nn

from prunecli import find_groups, load_model, read_spec
from prunecli.data import batches, loss_function, open_data
from prunecli.graph.structure import Group
from prunecli.importance.engine import groups_of_parameters
from prunecli.importance.gradients import LossFn
from prunecli.importance.look import Conditions, Look
from prunecli.importance.micro_batches import MicroBatch, micro_batches
from prunecli.importance.undisturbed import ScoreBN, undisturbed

GOAL = 2.0
"""What the ratio of times should reach."""
_HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("PRUNECLI_SHARED", _HERE.parents[1] / "shared")) / "data"
NETWORKS = ("resnet20", "resnet56")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: a network, its groups, how many units of each."""

    model: nn.Module
    groups: tuple[Group, ...]
    loss_fn: LossFn
    units: int | None

    def chosen(self, group: Group) -> Tensor:
        """Return the units to switch off, spread over the group, one row each (1 = off)."""
        count = min(self.units or group.width, group.width)
        return torch.eye(group.width, dtype=torch.int64)[torch.linspace(0, group.width - 1, count).long()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    checkpoint = DATA / "checkpoints" / f"akamaster_{options.network}_cifar10.safetensors"
    if not checkpoint.exists():
        print(f"{checkpoint} is not here: nothing was measured. PRUNECLI_SHARED says where `data` is.")
        return 0
    torch.set_num_threads(options.threads)
    spec = read_spec(_HERE / "cifar" / f"{options.network}.toml")
    model = load_model(spec, checkpoint)
    structure = find_groups(model, (torch.zeros(1, *spec.inputs[0].shape),))
    subject = Subject(model, groups_of_parameters(structure), loss_function(spec), options.units)
    images = open_data(f"npz:{DATA / 'cifar10_test.npz'}[:{options.images}]", spec)
    sample = list(micro_batches(batches(images, options.batch), options.batch))
    units = sum(len(subject.chosen(group)) for group in subject.groups)
    print(f"{options.network}, {options.images} images, {units} units in {len(subject.groups)} groups")
    print(
        f"{'batch':>5}  {'naive':>8}  {'prunecli':>8}  {'ratio':>6}  largest difference in a change of loss"
    )
    _report(list(measure(subject, sample)))
    return 0


def measure(subject: Subject, sample: Sequence[MicroBatch]) -> Iterator[tuple[float, float]]:
    """Yield, for each micro-batch, the seconds that both take."""
    with undisturbed(subject.model, ScoreBN.EVAL, 0), torch.no_grad():
        conditions = Conditions(subject.model, subject.groups, subject.loss_fn, ScoreBN.EVAL)
        for number, batch in enumerate(sample):
            ways: list[Callable[[], list[Tensor]]] = [
                lambda batch=batch: naive(subject, batch),  # type: ignore[misc]
                lambda batch=batch, number=number: ours(subject, Look(conditions, batch, number)),  # type: ignore[misc]
            ]
            timed = [_timed(way) for way in (ways if number % 2 == 0 else ways[::-1])]
            (slow, expected), (fast, found) = timed if number % 2 == 0 else timed[::-1]
            error = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
            print(
                f"{number:>5}  {slow:>6.1f} s  {fast:>6.1f} s  {slow / fast:>6.2f}  {error:.1e}", flush=True
            )
            yield slow, fast


def ours(subject: Subject, look: Look) -> list[Tensor]:
    """Return the changes of the loss that prunecli finds, by group."""
    return [look.changes_without(group, subject.chosen(group)) for group in subject.groups]


def naive(subject: Subject, batch: MicroBatch) -> list[Tensor]:
    """Return them from one whole forward pass per unit."""
    assert isinstance(batch.inputs, tuple)
    dense = subject.loss_fn(subject.model(*batch.inputs), batch.targets)
    found = []
    for group in subject.groups:
        changes = []
        for off in subject.chosen(group):
            with _gated(subject.model, group, int(off.argmax())):
                changes.append(subject.loss_fn(subject.model(*batch.inputs), batch.targets) - dense)
        found.append(torch.stack(changes).double())
    return found


@contextmanager
def _gated(model: nn.Module, group: Group, unit: int) -> Iterator[None]:
    """Multiply the outputs of the layers that make the unit by gates."""
    handles = []
    for member in group.members:
        name, _, leaf = member.tensor.rpartition(".")
        if member.gated and leaf == "weight":
            layer = model.get_submodule(name)
            gate = torch.ones(1, layer.get_parameter(leaf).shape[0], 1, 1)
            gate[:, torch.from_numpy(member.positions[member.units == unit])] = 0
            handles.append(layer.register_forward_hook(lambda _, args, out, gate=gate: out * gate))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _timed(work: Callable[[], list[Tensor]]) -> tuple[float, list[Tensor]]:
    start = perf_counter()
    found = work()
    return perf_counter() - start, found


def _report(pairs: Sequence[tuple[float, float]]) -> None:
    ratios = [slow / fast for slow, fast in pairs]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    total = sum(slow for slow, _ in pairs) / sum(fast for _, fast in pairs)
    print(f"\nthe naive loop takes {middle:.2f} ({low:.2f} to {high:.2f}) times as long; {total:.2f} in all; "
          f"goal: at least {GOAL:g}")  # fmt: skip


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", nargs="?", default=NETWORKS[0], choices=NETWORKS)
    parser.add_argument("--images", type=int, default=512, help="how many test images (512)")
    parser.add_argument("--batch", type=int, default=64, help="images in a micro-batch (64)")
    parser.add_argument("--units", type=int, help="so many units of each group at most (all)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
