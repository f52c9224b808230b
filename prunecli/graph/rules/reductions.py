"""Sums, means, extremes, softmax: dimensions that disappear or are compared along."""

from __future__ import annotations

import numpy as np

from prunecli.graph.call import Call, rule_for
from prunecli.graph.findings import Flow, Tag
from prunecli.graph.structure import Role


@rule_for(
    "sum", "mean", "nanmean", "nansum", "prod", "amax", "amin", "var", "std", "var_mean", "std_mean",
    "logsumexp", "linalg_vector_norm", "norm", "any", "all", "aminmax", "count_nonzero",
)  # fmt: skip
def reduction(call: Call) -> None:
    """Drop dimensions. Their units can go, but the statistic changes."""
    source = call.operands[0]
    dims = _dims(call, source.dim())
    labels = call.labels(source)
    call.tracer.constraints.statistics.extend(
        label for dim in dims if isinstance(label := labels[dim], np.ndarray)
    )
    for result in call.results():
        keeps = result.dim() == source.dim()
        kept = [
            None if dim in dims else label for dim, label in enumerate(labels) if keeps or dim not in dims
        ]
        call.put(kept, tensor=result)


@rule_for("max", "min", "argmax", "argmin", "median", "mode", "kthvalue")
def extreme(call: Call) -> None:
    """Find the extreme along a dimension; its position, if used, freezes that dimension."""
    reduction(call)
    source = call.operands[0]
    dims = _dims(call, source.dim())
    label = call.labels(source)[dims[0]] if len(dims) == 1 else None
    if not isinstance(label, np.ndarray):
        return
    for result in call.results():
        if not result.is_floating_point():
            tag = call.tracer.tag_of(result)
            call.tracer.set_tag(call, result, Tag(tag.labels, tag.flow, picked_from=label))


@rule_for(
    "_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", 
    "logcumsumexp", "cummax", "cummin", "sort", "argsort", "renorm",
)  # fmt: skip
def along(call: Call) -> None:
    """Compare or accumulate along a dimension: every position matters to the others, so none may go."""
    source = call.operands[0]
    dim = call.argument("dim", -1)
    call.freeze(call.labels(source)[dim], "is compared along by this operation")
    for result in call.results():
        labels = list(call.labels(source))
        if result.dim() == source.dim():
            labels[dim] = None
            call.put(labels, tensor=result)


@rule_for("_cdist_forward", "_euclidean_dist")
def distance(call: Call) -> None:
    """Distances between rows: a statistic over the last dimension of both."""
    left, right = call.args[0], call.args[1]
    summed = call.tie([call.labels(left)[-1], call.labels(right)[-1]])
    if isinstance(summed, np.ndarray):
        call.tracer.constraints.statistics.append(summed)
    for tensor in (left, right):
        call.tracer.read_raw(call.flow(tensor).open_sites)
        call.set_role(tensor, Role.WEIGHT if not call.flow(tensor).from_data else Role.OTHER)
    rows = [*call.labels(left)[:-1]]
    call.put([*rows, call.labels(right)[-2]], flow=Flow(True))


@rule_for("topk")
def topk(call: Call) -> None:
    """Pick the largest along a dimension."""
    source = call.operands[0]
    dim = call.argument("dim", -1) % source.dim()
    call.freeze(call.labels(source)[dim], "is picked from by size")
    labels = [None if place == dim else label for place, label in enumerate(call.labels(source))]
    for result in call.results():
        call.put(labels, tensor=result)


def _dims(call: Call, count: int) -> list[int]:
    given = call.argument("dim")
    if given is None or given == []:
        return list(range(count))
    return [dim % count for dim in ([given] if isinstance(given, int) else given)] if count else []
