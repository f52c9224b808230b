"""`oracle-combinatorial` against brute force by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.importance.oracle_combinatorial import subsets
from tests.graph.nets import BY_NAME
from tests.importance.gated import Setting, bent, looking, loss_without, setting


def tiny(seed: int) -> Setting:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    inputs = torch.randn(7, 3, dtype=torch.float64)
    return Setting(model.eval(), find_groups(model, (inputs[:1],)), (inputs,))


def scored(where: Setting, **arguments: object) -> dict[str, torch.Tensor]:
    return score(
        where.model, where.structure, [where.batch], bent, ["oracle-combinatorial"],
        micro_batch=4, method_args=arguments,
    )["oracle-combinatorial"].by_group  # fmt: skip


def best(where: Setting, group: object, number: int) -> tuple[int, ...]:
    """Return the `number` units whose removal leaves the least loss, from copies of the network."""
    every = combinations(range(group.width), number)  # type: ignore[attr-defined]
    return min(every, key=lambda units: loss_without(where, group, list(units)))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("remove", (1, 2, 3))
def test_finds_the_best_subset(seed: int, remove: int) -> None:
    where = tiny(seed)
    found = scored(where, remove=remove)
    for group in where.groups:
        gone = torch.nonzero(found[group.name] == 0).flatten().tolist()
        assert tuple(gone) == best(where, group, remove)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_shares_of_the_numbers_for_which_a_unit_stays(seed: int) -> None:
    where = tiny(seed)
    found = scored(where)
    for group in where.groups:
        stays = torch.zeros(group.width, dtype=torch.float64)
        for number in range(1, group.width):
            stays += torch.tensor([unit not in best(where, group, number) for unit in range(group.width)])
        assert found[group.name].tolist() == pytest.approx((stays / (group.width - 1)).tolist())


@pytest.mark.parametrize("name", ("PlainChain", "SqueezeExcite"))
def test_one_unit_less_is_the_greedy_choice_with_its_sign(name: str) -> None:
    where = setting(BY_NAME[name])
    found = scored(where, remove=1)
    with looking(where) as look:
        for group in where.groups:
            change = look.changes_without(group, torch.eye(group.width, dtype=torch.int64))
            least = (change == change.min()).double()  # units that tie share
            torch.testing.assert_close(found[group.name], 1 - least / least.sum())


def test_every_subset_is_listed_once() -> None:
    every = [tuple(row) for row in subsets(4).tolist()]
    assert len(every) == len(set(every)) == 15
    assert (0, 0, 0, 0) not in every


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (
            {"max_subsets": 31},
            r"cannot score `0`, which has 5 units, so 2\^5 subsets \(.*max_subsets=.* 31\)",
        ),
        ({"remove": 4}, "cannot score `2`, which has 4 units, of which 4 cannot go"),
        ({"remove": -1}, "of which -1 cannot go"),
    ),
)
def test_refuses_before_any_work(arguments: dict[str, int], message: str) -> None:
    where = tiny(0)
    where.model.register_forward_hook(lambda *_: pytest.fail("forward has run"))
    with pytest.raises(ScoreError, match=message):
        scored(where, **arguments)
