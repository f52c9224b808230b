"""Looking things up by index tensors: what is indexed cannot be cut, the rest is carried."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prunecli.graph.call import Call, rule_for
from prunecli.graph.constraints import IS_LOOKED_UP, Label
from prunecli.graph.findings import Flow
from prunecli.graph.structure import Role


@rule_for("embedding")
def embedding(call: Call) -> None:
    """Rows of a table, picked by data: the rows stay, the columns are units."""
    table, indices = call.args[0], call.args[1]
    rows, columns = call.labels(table)
    call.freeze(rows, IS_LOOKED_UP, expected=True)
    call.set_role(table, Role.WEIGHT)
    if isinstance(columns, np.ndarray):
        call.tracer.findings.produced.append(columns)
    sites = call.flow(table).parameters
    call.put((*call.labels(indices), columns), flow=Flow(True, frozenset(), sites))


@rule_for("_embedding_bag_forward_only", "_embedding_bag")
def embedding_bag(call: Call) -> None:
    """Sums or means of rows of a table, picked by data."""
    table = call.args[0]
    rows, columns = call.labels(table)
    call.freeze(rows, IS_LOOKED_UP, expected=True)
    call.set_role(table, Role.WEIGHT)
    result, *others = call.results()
    call.put((None, columns), flow=Flow(True, frozenset(), call.flow(table).parameters), tensor=result)
    for other in others:
        call.put((None,) * other.dim(), flow=Flow(), tensor=other)


@rule_for("index", "_unsafe_index")
def index(call: Call) -> None:
    """x[i, :, j]: freeze the indexed dimensions and the indices themselves."""
    source, indices = call.args[0], list(call.args[1])
    indices += [None] * (source.dim() - len(indices))
    labels = call.labels(source)
    indexed = [dim for dim, each in enumerate(indices) if each is not None]
    for each in indices:
        _freeze_tensor(call, each)
    for dim in indexed:
        call.freeze(labels[dim], "is picked by an index tensor")
    carried = [label for dim, label in enumerate(labels) if dim not in indexed]
    new_dims: list[Label] = [None] * (call.out.dim() - len(carried))
    together = indexed == list(range(indexed[0], indexed[0] + len(indexed))) if indexed else False
    place = indexed[0] if together else 0
    call.put([*carried[:place], *new_dims, *carried[place:]], flow=call.flow(source))


@rule_for("index_select", "gather", "take_along_dim")
def index_select(call: Call) -> None:
    """Pick along one dimension."""
    source, dim = call.args[0], call.args[1] % call.args[0].dim()
    _freeze_tensor(call, call.args[2])
    labels = list(call.labels(source))
    call.freeze(labels[dim], "is picked by an index tensor")
    labels[dim] = None
    if call.name != "index_select":
        for place, label in enumerate(labels):
            if call.out.shape[place] != source.shape[place]:
                call.freeze(label, "is picked by an index tensor")
                labels[place] = None
    call.put(labels, flow=call.flow(source))


def _freeze_tensor(call: Call, tensor: Tensor | None) -> None:
    if tensor is not None:
        for label in call.labels(tensor):
            call.freeze(label, "is used as an index")
