"""The order in which units would go."""

from __future__ import annotations

import numpy as np

from prunecli.budget.limits import Limit
from prunecli.budget.removal import order_removal
from prunecli.plan import Scope


def test_ranks_say_at_which_step_each_unit_goes() -> None:
    scores = {"a": np.array([0.3, 0.1, 0.5]), "b": np.array([0.2, 0.4])}
    limits = {"a": Limit((3, 2, 1), settled=False), "b": Limit((2, 1), settled=False)}
    removal = order_removal(scores, limits, Scope.GLOBAL)
    assert removal.steps == 3
    assert removal.ranks["a"].tolist() == [2, 0, 3]
    assert removal.ranks["b"].tolist() == [1, 3]
    assert removal.kept_after(2)["a"].tolist() == [True, False, True]


def test_settled_units_go_at_once_or_never() -> None:
    removal = order_removal({"a": np.array([0.3, 0.1, 0.5])}, {"a": Limit((1,), settled=True)}, Scope.GLOBAL)
    assert (removal.steps, removal.ranks["a"].tolist()) == (0, [-1, -1, 0])


def test_in_layers_all_groups_lose_the_same_share() -> None:
    scores = {"a": np.array([0.1, 0.2, 0.3, 0.4]), "b": np.array([9.0, 8.0])}
    limits = {"a": Limit((4, 3, 2, 1), settled=False), "b": Limit((2, 1), settled=False)}
    removal = order_removal(scores, limits, Scope.LAYER)
    assert removal.ranks["a"].tolist() == [0, 1, 3, 4]  # at 1/4, 2/4, 3/4
    assert removal.ranks["b"].tolist() == [4, 2]  # at 1/2


def test_steps_of_a_group_go_in_order_however_floats_round() -> None:
    scores = {"a": np.full(19, 0.1)}  # the mean of 8 is a hair below the mean of 3
    limits = {"a": Limit((19, 16, 8), settled=False)}
    assert scores["a"][:8].sum() / 8 < np.add.reduceat(scores["a"][:3], [0])[0] / 3
    assert order_removal(scores, limits, Scope.GLOBAL).ranks["a"].tolist() == [0] * 3 + [1] * 8 + [2] * 8


def test_units_worth_infinitely_much_go_last() -> None:
    scores = {"a": np.array([np.inf, 0.1, np.inf]), "b": np.array([5.0, 6.0])}
    limits = {"a": Limit((3, 2, 1), settled=False), "b": Limit((2, 1), settled=False)}
    removal = order_removal(scores, limits, Scope.GLOBAL)
    assert removal.ranks["a"].tolist() == [2, 0, 3]
