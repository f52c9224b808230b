"""Operations without data: what is remembered is what running gives, whatever a careless key mixes up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunecli.graph.kernels import MetaKernels
from prunecli.graph.shapes import Formula

aten = torch.ops.aten


def blank(*shape: int, **options: Any) -> Tensor:
    """Return a tensor without data."""
    return torch.empty(shape, device="meta", **options)


def described(out: Any) -> list[Any]:
    """Return all that can be seen of results."""
    parts = [out] if isinstance(out, Tensor) else list(out)
    return [
        None if each is None else (type(each), each.shape, each.stride(), each.dtype, each.device)
        for each in parts
    ]


def turned(rows: int, columns: int) -> Tensor:
    """Return a matrix whose columns lie one after the other in memory."""
    return blank(columns, rows).t()


IMAGE = blank(1, 4, 6, 6)
LAST = IMAGE.to(memory_format=torch.channels_last)
WEIGHT = blank(8, 4, 3, 3)
CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.add.Tensor, (blank(3, dtype=torch.int64), 1), {}),
    (aten.add.Tensor, (blank(3, dtype=torch.int64), 1.0), {}),
    (aten.add.Tensor, (blank(3, dtype=torch.bool), 1), {}),
    (aten.add.Tensor, (blank(3, dtype=torch.bool), True), {}),
    (aten.relu.default, (IMAGE,), {}),
    (aten.relu.default, (LAST,), {}),
    (aten.relu.default, (IMAGE.half(),), {}),
    (aten.mul.Tensor, (IMAGE, blank(4, 1, 1)), {}),
    (aten.mul.Tensor, (IMAGE, blank(6)), {}),
    (aten.sum.dim_IntList, (IMAGE, [1]), {}),
    (aten.sum.dim_IntList, (IMAGE, [1], True), {}),
    (aten.sum.dim_IntList, (IMAGE, [1]), {"dtype": torch.float64}),
    (aten.convolution.default, (IMAGE, WEIGHT, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), {}),
    (aten.convolution.default, (IMAGE, WEIGHT, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1), {}),
    (aten.convolution.default, (IMAGE, WEIGHT, blank(8), [1, 1], [0, 0], [1, 1], False, [0, 0], 1), {}),
    (aten.native_layer_norm.default, (blank(2, 5), [5], None, None, 1e-5), {}),
    (aten.max_pool2d_with_indices.default, (IMAGE, [2, 2]), {}),
    (aten.cat.default, ([IMAGE, IMAGE], 1), {}),
    (aten.cat.default, ([IMAGE, IMAGE], 2), {}),
    (aten.cat.default, ([IMAGE, IMAGE, IMAGE], 1), {}),
]


def test_remembered_results_are_those_that_running_gives() -> None:
    kernels = MetaKernels()
    for _ in range(2):
        for func, args, kwargs in CALLS:
            assert described(kernels.run(func, args, kwargs)) == described(func(*args, **kwargs)), func


def convolution(channels: int, filters: int, groups: int, size: int = 3, image: int = 6) -> tuple[Any, ...]:
    """Return the arguments of a convolution."""
    data, weight = blank(1, channels, image, image), blank(filters, channels // groups, size, size)
    return (data, weight, blank(filters), [1, 1], [0, 0], [1, 1], False, [0, 0], groups)


def batch_norm(channels: int, training: bool) -> tuple[Any, ...]:
    """Return the arguments of a batch norm."""
    owned = (blank(channels) for _ in range(4))
    return (blank(1, channels, 6, 6), *owned, training, 0.1, 1e-5)


KINDS = (torch.float32, torch.bool, torch.int32)
SIZES = range(5, 12)
ALL: tuple[Any, ...] = (None, [])
BY_FORMULA: list[list[tuple[Any, tuple[Any, ...]]]] = [
    [
        (aten.convolution.default, convolution(*sizes))
        for sizes in ((4, 8, 1), (5, 7, 1), (6, 6, 6), (6, 9, 3))
    ],
    [(aten.convolution.default, convolution(*sizes)) for sizes in ((4, 8, 1), (1, 8, 1), (4, 1, 1))],
    [(aten.convolution.default, convolution(4, 8, 1, *sizes)) for sizes in ((3, 6), (1, 1), (5, 9), (6, 6))],
    [(aten.native_batch_norm.default, batch_norm(n, mode)) for n in (3, 4, 1) for mode in (False, True)],
    [(aten.native_layer_norm.default, (blank(2, n), [n], blank(n), None, 1e-5)) for n in (5, 6, 1)],
    [(aten.native_layer_norm.default, (blank(2, 3, n), [3, n], None, None, 1e-5)) for n in (5, 6)],
    [
        (aten.addmm.default, (blank(m), blank(2, n), turned(n, m)))
        for n, m in ((3, 4), (5, 6), (1, 4), (3, 1))
    ],
    [(aten.mm.default, (blank(2, n), blank(n, m))) for n, m in ((3, 4), (5, 6), (1, 1))],
    [(aten.mm.default, (turned(2, n), turned(n, 3))) for n in (3, 5)],
    [(aten.bmm.default, (blank(n, 2, 3), blank(n, 3, 4))) for n in (3, 5, 1)],
    [(aten.cat.default, ([blank(1, n, 6), blank(1, m, 6)], 1)) for n, m in ((3, 4), (5, 6), (1, 1))],
    [(aten.cat.default, ([blank(n, 6), turned(n, 6)], -2)) for n in (3, 4)],
    [(aten.mul.Tensor, (blank(1, n, 6, 6), blank(n, 1, 1))) for n in (3, 4, 1)],
    [(aten.mul.Tensor, (turned(n, 4), turned(n, 4))) for n in (3, 5)],
    [(aten.gt.Scalar, (blank(n), 0)) for n in (3, 5)],
    [(aten.roll.default, (blank(1, n, 6), [2], [1])) for n in (3, 5)],
    [(aten.clone.default, (turned(n, 4),)) for n in (3, 5)],
    [(aten.mean.dim, (blank(1, n, 6, 6), [2, 3], True)) for n in (3, 4, 1)],
    [(aten.mean.dim, (blank(1, n, 6, 6), [-1, -2])) for n in (3, 4, 1)],
    [(aten.mean.dim, (blank(1, n, 6), dims)) for n in (3, 4) for dims in ALL],
    [(aten.mean.default, (blank(1, n, 6),)) for n in (3, 4)],
    [(aten.sum.dim_IntList, (blank(2, n, dtype=kind), [0])) for n in (3, 4) for kind in KINDS],
    [(aten.sum.default, (blank(n, dtype=kind),)) for n in (3, 4) for kind in KINDS],
    [(aten._softmax.default, (blank(2, n), -1, False)) for n in (3, 4)],
    *(
        [
            (aten.max_pool2d_with_indices.default, (blank(1, n, size, 9), *window))
            for n in (3, 4)
            for size in SIZES
        ]
        for window in (
            ([2, 2],),
            ([3], [2], [1]),
            ([3, 2], [2, 1], [1, 0], [2, 1]),
            ([3, 3], [2, 2], [0, 0], [1, 1], True),
        )
    ),
    *(
        [(aten.avg_pool2d.default, (blank(1, n, size, 9), *window)) for n in (3, 4) for size in SIZES]
        for window in (
            ([2, 2],),
            ([3, 3], [2], [1]),
            ([3, 3], [2, 2], [1, 1], True, False),
            ([2, 2], [3, 3], [0, 0], True),
        )
    ),
]


@pytest.mark.parametrize("calls", BY_FORMULA, ids=lambda calls: calls[0][0].overloadpacket.__name__)
def test_formulas_give_what_running_gives(calls: list[tuple[Any, tuple[Any, ...]]]) -> None:
    kernels = MetaKernels()
    for func, args in [*calls, *reversed(calls)]:
        assert described(kernels.run(func, args, {})) == described(func(*args)), args


MISFITS: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = [
    (aten.convolution.default, convolution(4, 8, 1), (blank(1, 5, 6, 6), *convolution(4, 8, 1)[1:])),
    (aten.convolution.default, convolution(4, 8, 1), convolution(4, 8, 1, 9, 6)),
    (aten.max_pool2d_with_indices.default, (IMAGE, [2, 2]), (IMAGE, [7, 7])),
    (aten.max_pool2d_with_indices.default, (IMAGE, [2, 2], [1, 1]), (IMAGE, [2, 2], [1, 0])),
    (aten.max_pool2d_with_indices.default, (IMAGE, [2, 2], [2, 2]), (IMAGE, [2, 2], [2, 2, 2])),
    (aten.mean.dim, (IMAGE, [2, 3]), (IMAGE, [3, 4])),
    (aten.mean.dim, (IMAGE, [2, 3]), (IMAGE, [3, 3])),
    (
        aten.native_layer_norm.default,
        (blank(2, 5), [5], None, None, 1e-5),
        (blank(2, 5), [4], None, None, 1e-5),
    ),
    (aten.mm.default, (blank(2, 3), blank(3, 4)), (blank(2, 3), blank(5, 4))),
    (aten.addmm.default, (blank(4), blank(2, 3), blank(3, 4)), (blank(5), blank(2, 3), blank(3, 4))),
    (aten.bmm.default, (blank(2, 3, 4), blank(2, 4, 5)), (blank(2, 3, 4), blank(3, 4, 5))),
    (aten.cat.default, ([blank(2, 3), blank(2, 4)], 1), ([blank(2, 3), blank(3, 4)], 1)),
    (aten.add.Tensor, (blank(2, 3), blank(2, 3)), (blank(2, 3), blank(2, 4))),
    (aten.add_.Tensor, (blank(2, 3), blank(2, 3)), (blank(2, 3), blank(2, 4))),
]


@pytest.mark.parametrize(("func", "fits", "fails"), MISFITS)
def test_operands_that_do_not_fit_fail_after_those_that_do(
    func: Any, fits: tuple[Any, ...], fails: tuple[Any, ...]
) -> None:
    kernels = MetaKernels()
    for _ in range(2):
        kernels.run(func, fits, {})
        with pytest.raises((RuntimeError, IndexError)):
            kernels.run(func, fails, {})


def test_a_formula_that_was_wrong_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Formula(lambda data, *_: [(*data.shape, 2)])
    monkeypatch.setattr("prunecli.graph.kernels.formula_of", lambda func: wrong)
    monkeypatch.setattr("prunecli.graph.kernels._KINDS", {})
    kernels = MetaKernels()
    for width in (3, 3, 4, 5):
        assert kernels.run(aten.relu.default, (blank(width),), {}).shape == (width,)


@pytest.mark.parametrize("func", (aten.add.out, aten.mean.out, aten.gt.Scalar_out, aten.cat.out), ids=str)
def test_results_that_are_given_are_written(func: Any) -> None:
    kernels = MetaKernels()
    args = {aten.mean.out: (IMAGE, [2]), aten.gt.Scalar_out: (IMAGE, 0), aten.cat.out: ([IMAGE, IMAGE],)}
    for _ in range(2):
        out = blank(0, dtype=torch.bool if func is aten.gt.Scalar_out else torch.float32)
        assert kernels.run(func, args.get(func, (IMAGE, IMAGE)), {"out": out}) is out


def test_what_is_written_in_place_is_returned_itself() -> None:
    kernels = MetaKernels()
    for width in (3, 4, 5):
        image, other = blank(1, width), blank(1, width)
        assert kernels.run(aten.relu_.default, (image,), {}) is image
        assert kernels.run(aten.add_.Tensor, (image, other), {}) is image


def test_each_call_returns_new_tensors() -> None:
    kernels = MetaKernels()
    first, second, third = (kernels.run(aten.relu.default, (IMAGE,), {}) for _ in range(3))
    assert first is not second
    assert second is not third


def test_what_shares_memory_runs_every_time() -> None:
    kernels = MetaKernels()
    for _ in range(2):
        base = torch.zeros(4, 4)
        kernels.run(aten.view.default, (base, [16]), {}).fill_(1)
        assert base.sum() == 16
        assert kernels.run(aten.add_.Tensor, (base, 1), {}) is base
        assert base.sum() == 32


def test_tensors_with_data_are_computed() -> None:
    kernels = MetaKernels()
    for number in (1.0, 2.0):
        assert kernels.run(aten.add.Tensor, (torch.full((2,), number), 1), {}).tolist() == [number + 1] * 2


def test_a_call_that_fails_fails_every_time() -> None:
    kernels = MetaKernels()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            kernels.run(aten.mm.default, (blank(2, 3), blank(4, 5)), {})


def test_types_follow_the_default_of_the_moment() -> None:
    kernels, default = MetaKernels(), torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            assert kernels.run(aten.sigmoid.default, (blank(3, dtype=torch.int64),), {}).dtype == dtype
            assert kernels.run(aten.empty.memory_format, ([3],), {"device": "meta"}).dtype == dtype
    finally:
        torch.set_default_dtype(default)
