"""Element by element: equal positions of the operands go together. Constants go with anything."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prunecli.graph.call import Call, rule_for
from prunecli.graph.constraints import UNIFORM, Label
from prunecli.graph.findings import Flow
from prunecli.graph.structure import Role

ADDITIONS = frozenset({"add", "sub", "rsub", "_foreach_add"})


@rule_for(
    "pointwise", "clone", "_to_copy", "contiguous", "detach", "lift_fresh", "positive", "copy", "fill",
    "zero", "masked_fill", "where", "hardswish", "hardtanh", "native_dropout", "bernoulli",
    "tril", "triu", "_prelu_kernel", "nan_to_num", "_conj", "resolve_conj", "uniform", "normal",
    "gelu", "elu", "celu", "selu", "softplus", "glu_jvp", "logit", "masked_scatter", "isin",
)  # fmt: skip
def pointwise(call: Call) -> None:
    """Tie the operands at equal positions; a dimension of length 1 that is broadcast ties nothing."""
    results = call.results()
    if not results:
        return
    shape = results[0].shape
    merged = [_across(call, dim - len(shape), length) for dim, length in enumerate(shape)]
    flow = _flow_of_sum(call) if call.name in ADDITIONS else call.joined_flow()
    for result in results:
        if call.is_in_place and result is call.args[0]:
            _write(call, result, merged, flow)
        else:
            call.put(merged[len(merged) - result.dim() :], flow=flow, tensor=result)


@rule_for(
    "zeros", "ones", "full", "empty", "empty_strided", "new_zeros", "new_ones", "new_full", "new_empty",
    "new_empty_strided", "scalar_tensor", "_local_scalar_dense", "_efficientzerotensor",
)  # fmt: skip
def constant(call: Call) -> None:
    """A constant has no positions of its own: it follows whatever it meets."""
    for result in call.results():
        call.put((UNIFORM,) * result.dim(), flow=Flow(), tensor=result)


@rule_for("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
def like(call: Call) -> None:
    """A tensor made to fit another one has its positions, and nothing of what it was made of."""
    labels = [UNIFORM if label is None else label for label in call.labels(call.operands[0])]
    call.put(labels, flow=Flow())


@rule_for("arange", "linspace", "eye", "rand", "randn", "randint", "randperm", "tril_indices", "triu_indices")
def counted(call: Call) -> None:
    """Values that differ by position and belong to no parameter."""
    for result in call.results():
        call.put((None,) * result.dim(), flow=Flow(), tensor=result)


def _across(call: Call, dim: int, length: int) -> Label:
    """Tie the labels that the operands have along one dimension, counted from the last."""
    if length == 1:
        return None
    overwritten = call.args[0] if call.is_in_place and call.name in {"copy", "fill", "zero"} else None
    labels = [
        call.labels(operand)[dim]
        for operand in call.operands
        if operand.dim() >= -dim and operand.shape[dim] == length
        if operand is not overwritten or call.tracer.is_aliased(operand)
    ]
    return call.tie(labels) if labels else UNIFORM


def _write(call: Call, target: Tensor, merged: list[Label], flow: Flow) -> None:
    """Label a tensor that was written in place; what lands inside a larger constant is frozen."""
    before = call.labels(target)
    if not call.tracer.is_aliased(target):
        call.put(merged, flow=flow, tensor=target)
        return
    call.tracer.note_write(target, flow)
    for old, new in zip(before, merged, strict=True):
        if isinstance(new, np.ndarray) and not isinstance(old, np.ndarray):
            call.freeze(new, "is written in place into a part of a tensor")
    call.put(before, flow=flow, tensor=target)


def _flow_of_sum(call: Call) -> Flow:
    """Adding a parameter to data makes that parameter a gate site: it is one more producer of the units.

    Not where no layer made the data: a bias on the scores of attention shifts them, and makes no head.
    """
    flow = call.joined_flow()
    if not flow.from_data:
        return flow
    added = {
        name
        for operand in call.operands
        if not call.flow(operand).from_data
        for name in call.flow(operand).parameters
    }
    for operand in call.operands:
        if not call.flow(operand).from_data:
            call.set_role(operand, Role.OTHER)
    return Flow(True, frozenset(), flow.open_sites | added if flow.open_sites else frozenset())
