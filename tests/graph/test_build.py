"""Axes are found once: by the atoms themselves, not by where an array of them happens to lie."""

from __future__ import annotations

import torch

from prunecli.graph.build import _Columns, _Units
from prunecli.graph.solve import solve
from prunecli.graph.trace import trace

from .nets import BY_NAME, CASES


def test_arrays_that_come_and_go_are_told_apart() -> None:
    case = next((each for each in CASES if len(each.groups) > 2), BY_NAME[CASES[0].name])
    found = trace(case.build(), case.example(1))
    solution = solve(found.constraints)
    columns = _Columns(found, solution)
    units = _Units(columns, solution)
    expected = [units.axis_of(column.atoms) for column in columns.all]
    assert len({id(each) for each in expected}) > 2
    for _ in range(3):  # a copy lies where the last one lay, once that is gone
        assert [units.axis_of(column.atoms.copy()) for column in columns.all] == expected


def test_networks_without_labels_have_no_groups() -> None:
    found = trace(torch.nn.ReLU(), (torch.zeros(1, 4),))
    assert _Units(_Columns(found, solve(found.constraints)), solve(found.constraints)).names == []
