"""`lap`: how large a weight is, seen through the layers in front of it and behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import torch
from torch import Tensor

from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.chain import chained
from prunecli.weights.neighbours import Around, find_neighbours
from prunecli.weights.network import Network, WeightScores

_NOTES = "lap: what is unknown"


class Graph(str, Enum):
    """Which layers are neighbours."""

    GRAPH = "graph"  # those that data pass between
    CHAIN = "chain"  # those next to each other in the order of the modules, as in published code


@method(
    "lap",
    needs=Needs.PARAMETERS,
    source="Park et al., 2020",
    granularity=Granularity.WEIGHT,
)
@dataclass(frozen=True)
class Lap:
    """Size of the weight times the norms of what stands before its input and behind its output.

    score = |w| |W_before[j, :]| |W_behind[:, k]| d_before[j] d[k] for the weight w from input j to output k,
    with Frobenius norms over all other axes, and d = |gamma| / sqrt(var + 1e-10) of the normalisations in
    between: how far removing it distorts what three linear layers in a row compute.

    Who feeds whom is seen by running one example. Several layers that make or read a unit add up
    their squared norms. An identity that goes past a layer counts as a layer of its own, of norm 1: of
    x + F(x), what reads it has 1 + |W_F[j, :]|^2 in front, whatever made x. So does what cannot be
    followed, and what is missing: the inputs and outputs of the network, a gate on the units. Positions
    that a unit has after flattening each repeat its factor, and their readers add up.
    """

    bn: Annotated[bool, "Count the scales of the normalisations in between."] = True
    graph: Annotated[Graph, "Neighbours: those data pass between, or the order of modules (chain)."] = (
        Graph.GRAPH
    )
    normalise: Annotated[bool, "Divide the scores of each layer by their L2 norm."] = False

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the products; see the class."""
        follows = self.graph is Graph.GRAPH
        found = find_neighbours(network, self.bn) if follows else chained(network, self.bn)
        network.known[_NOTES] = _unknown(network, found) if follows else ()
        scores = {name: _score(weight, found.get(name)) for name, weight in network.weights.items()}
        return {name: _normalised(each) for name, each in scores.items()} if self.normalise else scores

    def notes(self, network: Network) -> tuple[str, ...]:
        """Return for which layers a neighbour is not known."""
        notes: tuple[str, ...] = network.known.get(_NOTES, ())
        return notes


def _score(weight: Tensor, around: Around | None) -> Tensor:
    size = weight.abs().double()
    if around is None:
        return size
    before = around.layout.over_inputs(around.inputs.sqrt(), weight)
    behind = around.layout.over_outputs(around.outputs.detach().sqrt(), weight)
    return size * before * behind


def _normalised(scores: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(scores)
    return scores / norm if norm > 0 else scores


def _unknown(network: Network, found: dict[str, Around]) -> tuple[str, ...]:
    """Return a sentence per function that hides neighbours, and one on layers that are never called."""
    hidden: dict[str, list[str]] = {}
    for name in network.weights:
        around = found.get(name)
        if around is None:
            continue
        behind = around.source.lost_in if not bool(around.source.is_read.all()) else set()
        for function in sorted(around.hidden | behind):
            hidden.setdefault(function, []).append(name)
    notes = [
        f"lap: `{function}` hides neighbours of {_listed(names)}; they count as 1"
        for function, names in hidden.items()
    ]
    apart = [name for name in network.weights if name not in found]
    if apart:
        notes.append(f"lap: no layer reads {_listed(apart)} as they are: their neighbours count as 1")
    return tuple(notes)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more
