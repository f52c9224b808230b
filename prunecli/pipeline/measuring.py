"""A model and its test data -> how good its answers are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import ceil, isfinite
from typing import Any

from torch import nn

from prunecli import data
from prunecli.peers import ALONE, Peers
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.running import Place, explained, float_dtype
from prunecli.pipeline.settings import Machine, Samples
from prunecli.report import Accuracy


@dataclass(frozen=True, eq=False)
class Judge:
    """Says how good models are on the test data, which it opens once; None of all where there is none."""

    opened: Opened
    samples: Samples
    machine: Machine
    place: Place
    listener: Listener

    @cached_property
    def test(self) -> data.Samples | None:
        """The test data; None where the spec names none."""
        source = self.opened.spec.data.test
        if source is None:
            return None
        spec = self.opened.spec
        return data.open_data(source, spec, download=self.samples.download, seed=self.machine.seed)

    def evaluate(
        self, model: nn.Module, stage: str, most: int | None = None, peers: Peers = ALONE
    ) -> data.Evaluation | None:
        """Return how good a model is on the test data, or the first samples of it.

        Where several processes measure together, the statistics of the first one's model count.

        Raises:
            PeerError: one of them is gone.
        """
        if self.test is None:
            return None
        peers.spread(list(model.buffers()))
        lent = self.place.lend(model)
        count = len(self.test) if most is None else min(len(self.test), most)
        total = len(range(peers.rank, ceil(count / self.samples.batch_size), peers.count))
        stream = data.batches(
            self.test,
            self.samples.batch_size,
            None,
            self.machine.seed,
            device=self.place.device,
            dtype=float_dtype(lent),
            first=peers.rank,
            every=peers.count,
        )
        counted = _counted(islice(stream, total), total, stage, self.listener)
        with explained(lent, f"Measuring accuracy on `{self.test.source}`"):
            return data.evaluate(lent, counted, self.opened.spec, peers=peers)

    def accuracy(self, model: nn.Module, stage: str, most: int | None = None) -> Accuracy | None:
        """Return the same as a report holds it, which has no room for a loss of nan or inf."""
        found = self.evaluate(model, stage, most)
        if found is None:
            return None
        loss = found.loss if isfinite(found.loss) else None
        if loss is None:
            self.listener.warn(f"{stage}: the loss is {found.loss}; what the model computes is not finite")
        return Accuracy(samples=found.samples, loss=loss, top1=found.top1, top5=found.top5)


def _counted(stream: Iterator[Any], total: int, stage: str, listener: Listener) -> Iterator[Any]:
    for done, batch in enumerate(stream):
        listener.progress(stage, done, total)
        yield batch
