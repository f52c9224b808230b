"""Alike groups of alike blocks are cut alike on trial; those that can meet each other are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunecli import find_groups
from prunecli.graph.build import build
from prunecli.graph.homes import alike_places
from prunecli.graph.probe import Prober
from prunecli.graph.solve import solve
from prunecli.graph.trace import trace


class Block(nn.Module):
    """Two layers and a shortcut past them."""

    def __init__(self, width: int = 6, hidden: int = 12) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


class Branch(nn.Sequential):
    """Makes 16 features."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.ReLU())


class Branches(nn.Module):
    """Puts what alike branches made side by side, and takes it apart by size."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch() for _ in range(4))
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        side_by_side = torch.cat([branch(x) for branch in self.branches], -1)
        part = side_by_side.shape[-1] // 3
        pieces = (side_by_side[:, :part], side_by_side[:, part:])
        return self.head(torch.stack([piece.mean(-1) for piece in pieces], -1))


def places(model: nn.Module) -> dict[str, int]:
    found = trace(model.eval(), (torch.randn(2, 6),))
    draft = build(found, solve(found.constraints))
    return dict(zip(draft.unit_classes, alike_places(found, draft), strict=True))


def test_hidden_units_of_alike_blocks_are_alike() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Block(), Block(), Block(6, 13), Block())
    found = places(nn.Sequential(model, nn.Linear(6, 2)))
    assert len(found) == 5  # the units between the blocks, and those inside
    assert found["0.2.first"] == found["0.4.first"]
    assert len(set(found.values())) == 4


def test_units_that_meet_outside_of_their_blocks_are_not_alike() -> None:
    found = places(Branches())
    assert list(found.values()) == [0, 1, 2, 3]


def test_pieces_that_fit_no_branch_are_noticed() -> None:
    structure = find_groups(Branches().eval(), (torch.randn(2, 6),))
    assert not structure.groups
    assert {each.name for each in structure.frozen} >= {f"branches.{place}.0" for place in range(4)}


class Chain(nn.Module):
    """Calls blocks in some way, one after the other."""

    def __init__(self, block: type[Block], step: Callable[[Chain, int, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(block() for _ in range(4)), nn.Linear(6, 2)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        for place in range(len(self.blocks)):
            x = self.step(self, place, x)
        return self.head(x)


class Told(Block):
    """Is told its width."""

    def forward(self, x: Tensor, width: int) -> Tensor:  # type: ignore[override]
        return x + self.second(self.first(x).view(-1, width).relu())


class Multiplying(Block):
    """Multiplies what it makes with something as long as what the last block made."""

    def forward(self, x: Tensor, ones: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        made = self.first(x)
        if ones is not None:
            made = made * ones
        return x + self.second(made), x.new_ones(made.shape[-1])


def told(chain: Chain, place: int, x: Tensor) -> Tensor:
    out: Tensor = chain.blocks[place](x, chain.blocks[0].first.weight.shape[0])
    return out


def equal(chain: Chain, place: int, x: Tensor) -> Tensor:
    assert chain.blocks[place].first.out_features == chain.blocks[place - 1].first.out_features
    out: Tensor = chain.blocks[place](x)
    return out


def in_proportion(chain: Chain, place: int, x: Tensor) -> Tensor:
    out: Tensor = chain.blocks[place](x)
    return out * (chain.blocks[place - 1].first.out_features / chain.blocks[place].first.out_features)


def through_ones(chain: Chain, place: int, x: Tensor) -> Tensor:
    out, ones = chain.blocks[place](x)
    out, _ = chain.blocks[(place + 1) % 4](out, ones)
    return out


@pytest.mark.parametrize(
    ("block", "step"),
    ((Told, told), (Block, equal), (Block, in_proportion), (Multiplying, through_ones)),
    ids=("width of the first", "asserted to be equal", "in proportion", "made from a size"),
)
def test_sizes_that_leave_their_block_are_noticed(
    block: type[Block], step: Callable[[Chain, int, Tensor], Tensor]
) -> None:
    structure = find_groups(Chain(block, step).eval(), (torch.randn(2, 6),))
    assert not [group.name for group in structure.groups if group.name.startswith("blocks")]


class Dividing(nn.Module):
    """Has code that gives a size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).view(-1, 1, 16).flatten(1))


@pytest.mark.parametrize(
    ("build_model", "trials"),
    (
        (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)), 1),
        (
            lambda: nn.Sequential(nn.Linear(6, 16), nn.Unflatten(-1, (2, 8)), nn.Flatten(), nn.Linear(16, 2)),
            2,
        ),
        (Dividing, 2),
        (Branches, 2),
    ),
    ids=("no sizes", "split", "view", "pieces"),
)
def test_two_trials_where_sizes_matter(build_model: Callable[[], nn.Module], trials: int) -> None:
    found = trace(build_model().eval(), (torch.randn(2, 6),))
    draft = build(found, solve(found.constraints))
    assert len(Prober(found, draft, (torch.randn(2, 6),), {}).cuts) == trials


class Asking(nn.Module):
    """Goes another way where the size divides by a number; otherwise its code does nothing with sizes."""

    def __init__(self, width: int, divisor: int) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, width), nn.Linear(width, 2)
        self.divisor, self.rest = divisor, width % divisor

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x)
        return self.head(made.relu() if made.shape[-1] % self.divisor == self.rest else made.sigmoid())


@pytest.mark.parametrize("divisor", (2, 3, 4, 8))
@pytest.mark.parametrize("width", (8, 9, 12, 16, 17, 32, 33, 64, 65))
def test_one_trial_tells_whether_sizes_divide(width: int, divisor: int) -> None:
    structure = find_groups(Asking(width, divisor).eval(), (torch.randn(2, 6),))
    assert not structure.groups
