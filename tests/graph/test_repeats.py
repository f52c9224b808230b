"""Repeats: a trace that answers for alike blocks says exactly what one that runs them all says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn

from prunecli import find_groups
from prunecli.graph.trace import trace

from .test_shortcuts import both_ways, plain, said

ran: list[str] = []
"""The blocks whose code ran since the test began."""
note = ran.append
"""What blocks note it with: a bound method, into which nobody looks."""


@pytest.fixture(autouse=True)
def _nobody_ran() -> None:
    ran.clear()


class Block(nn.Module):
    """Two layers and a shortcut past them; its name is in what it notes, and nowhere in itself."""

    def __init__(self, width: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        note("Block")
        return x + self.second(self.norm(self.first(x)).relu())


class Convolutional(nn.Module):
    """As in MobileNet: wider, in every channel by itself, narrower."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, 3 * width, 1, bias=False), nn.BatchNorm2d(3 * width), nn.ReLU6(inplace=True),
            nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width), nn.BatchNorm2d(3 * width),
            nn.Conv2d(3 * width, width, 1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        note("Convolutional")
        return x + self.body(x)


class Attention(nn.Module):
    """Attention whose heads are split by code, with a mask and a flag as further arguments."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, *, scaled: bool = True) -> tuple[Tensor, dict[str, Any]]:
        note("Attention")
        parts = self.into(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = query @ key.transpose(-1, -2)
        scores = (scores / key.shape[-1] ** 0.5 if scaled else scores) + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return x + self.out(mixed), {"mask": mask, "scaled": scaled}


class InPlace(nn.Module):
    """Writes to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        note("InPlace")
        return self.layer(x.relu_()) * 1


class Caching(nn.Module):
    """Keeps something when it runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(8, 8), 0

    def forward(self, x: Tensor) -> Tensor:
        note("Caching")
        self.times += 1
        return self.layer(x) * self.times


class Views(nn.Module):
    """Puts out its input, a view of it, and something new."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        note("Views")
        return x, x.unsqueeze(0), self.layer(x)


class Flagged(nn.Module):
    """Is told from outside, while the network runs, which way to go."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.flag = nn.Linear(8, 8), 0

    def forward(self, x: Tensor) -> Tensor:
        note("Flagged")
        return self.layer(x).relu() if self.flag % 2 else self.layer(x)


class Shared(nn.Module):
    """Rectifies by a module that is in other blocks too, and twice in this one."""

    def __init__(self, act: nn.Module, again: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(8, 12), act), nn.Sequential(nn.Linear(12, 8), again)

    def forward(self, x: Tensor) -> Tensor:
        note("Shared")
        return x + self.second(self.first(x))


class Filling(Block):
    """Adds what it makes to a list or a dict that it is given."""

    def forward(self, x: Tensor, kept: Any) -> Tensor:  # type: ignore[override]
        note("Filling")
        made = self.norm(self.first(x))
        if isinstance(kept, list):
            kept.append(made)
        else:
            kept["made"] = made
        return x + self.second(made)


class Comparing(nn.Module):
    """Goes another way where it is given the same tensor twice, and puts out the one it was given first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        note("Comparing")
        made = self.second(y)
        return self.first(x) + (made.relu() if x is y else made)


class Writing(Block):
    """Writes what it makes to parts of a tensor that it is given."""

    def forward(self, x: Tensor, room: Tensor) -> Tensor:  # type: ignore[override]
        note("Writing")
        made = self.norm(self.first(x))
        room[..., :1], room[..., 1:] = made[..., :1], made[..., 1:]
        return x + self.second(made)


class Rooms(Block):
    """Puts out a tensor of zeros and a view of it, a view of what it is given, and what may be put there."""

    def forward(self, x: Tensor, room: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        note("Rooms")
        made, zeros = self.norm(self.first(x)), x.new_zeros(1, 4, 12)
        return x + self.second(made), zeros, zeros.view(4, 12), room.view(4, 12), made[0]


class Chain(nn.Module):
    """Blocks one after the other, and a head."""

    def __init__(self, blocks: list[nn.Module], step: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(5, 8), nn.ModuleList(blocks)
        self.head = nn.Linear(8, 3)
        self.step = step or (lambda block, x: block(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * 1  # no view, whatever the version of torch makes linear layers of
        for block in self.blocks:
            x = self.step(block, x)
        return self.head(x)


class Pictures(nn.Module):
    """Convolutional blocks, of which two stages are alike each."""

    def __init__(self) -> None:
        super().__init__()
        first, then = [Convolutional() for _ in range(4)], [Convolutional(16) for _ in range(4)]
        self.stem, self.first = nn.Conv2d(3, 8, 3), nn.Sequential(*first)
        self.between, self.then = nn.Conv2d(8, 16, 3), nn.Sequential(*then)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.then(self.between(self.first(self.stem(x)).relu()))
        return self.head(x.mean((2, 3)))


def tied() -> nn.Module:
    blocks = [Block() for _ in range(4)]
    blocks[2].first.weight = blocks[0].first.weight
    return Chain(blocks)


def same_twice() -> nn.Module:
    block = Block()
    return Chain([block, Block(), block])


def attending(block: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = block(x, x.new_zeros(4, 4), scaled=True)[0]
    return out


def of_views(block: nn.Module, x: Tensor) -> Tensor:
    same, view, new = block(x)
    out: Tensor = same + view[0] + new
    return out


OUTSIDE = nn.Parameter(torch.ones(8))


class Outside(nn.Module):
    """Reads a tensor that is nobody's: all it makes after the first is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        note("Outside")
        return self.layer(x) * OUTSIDE.to(x.device)


def written(block: nn.Module, x: Tensor) -> Tensor:
    other = x * 1
    block(other[None])
    return other


TURNS = cycle(range(3))


def flagging(block: nn.Module, x: Tensor) -> Tensor:
    block.flag = next(TURNS)
    out: Tensor = block(x)
    return out


def flagging_for_once(block: nn.Module, x: Tensor) -> Tensor:
    block.flag = next(TURNS)
    out: Tensor = block(x)
    block.flag = 0
    return out


def shared_by_all() -> nn.Module:
    act = nn.ReLU()
    return Chain([Shared(act, nn.ReLU()) for _ in range(4)])


def shared_inside() -> nn.Module:
    acts = [nn.ReLU() for _ in range(6)]
    return Chain(
        [Shared(acts[n], acts[n if n % 2 else n + 1]) for n in (1, 2, 5)] + [Shared(acts[0], acts[0])]
    )


def filling(kept: Any, block: nn.Module, x: Tensor) -> Tensor:
    mine = kept()
    out: Tensor = block(x, mine)
    for made in mine if isinstance(mine, list) else mine.values():
        out = out + made.mean(-1, keepdim=True)
    return out


TIMES = [0]


class Counting(Block):
    """Counts its calls in a variable of the module; every other one is another."""

    def forward(self, x: Tensor) -> Tensor:
        note("Counting")
        TIMES[0] += 1
        made = self.norm(self.first(x))
        return x + self.second(made.relu() if TIMES[0] % 2 else made)


class CountingTogether(Block):
    """Counts its calls in an attribute of its class."""

    times = 0

    def forward(self, x: Tensor) -> Tensor:
        note("CountingTogether")
        CountingTogether.times += 1
        made = self.norm(self.first(x))
        return x + self.second(made.relu() if self.times % 2 else made)


KEPT: dict[str, Tensor] = {}


class Keeping(Block):
    """Adds what the block before it made, which it finds where that left it."""

    def forward(self, x: Tensor) -> Tensor:
        note("Keeping")
        made = self.norm(self.first(x))
        before = KEPT.get("made", made)
        KEPT["made"] = made
        return x + self.second(made + before)


class Acting(Block):
    """Holds a function that remembers."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        note("Acting")
        return x + self.second(self.act(self.norm(self.first(x))))


def keeping() -> nn.Module:
    chain = Chain([Keeping() for _ in range(4)])
    chain.register_forward_pre_hook(lambda *_: KEPT.clear())
    return chain


def counting(kind: type[Block]) -> nn.Module:
    def begin(*_: object) -> None:
        TIMES[0] = CountingTogether.times = 0

    chain = Chain([kind() for _ in range(4)])
    chain.register_forward_pre_hook(begin)
    return chain


def alternating() -> nn.Module:
    calls = 0

    def act(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x.relu() if calls % 2 else x

    return Chain([Acting(act) for _ in range(4)])


MODE = ["plain"]


class Moody(Block):
    """Goes by a variable that somebody else sets."""

    def forward(self, x: Tensor) -> Tensor:
        note("Moody")
        made = self.norm(self.first(x))
        return x + self.second(made.relu() if MODE[0] == "other" else made)


def in_a_mood(block: nn.Module, x: Tensor) -> Tensor:
    MODE[0] = "other"
    x = block(x)
    MODE[0] = "plain"
    out: Tensor = block(x)
    return out


def comparing(block: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = block(block(x, x), x + 1)
    other = out.relu()
    return block(out, other) + block(out, out)


EVEN = cycle((True, False))


def by_turns(block: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = block(x, x if next(EVEN) else x + 1)
    return out


def writing(block: nn.Module, x: Tensor) -> Tensor:
    room = x.new_zeros(1, 4, 12)
    out: Tensor = block(x, room.view(4, 12)[None])
    return out + room.mean(-1, keepdim=True)


def filling_rooms(block: nn.Module, x: Tensor) -> Tensor:
    room = x.new_zeros(1, 4, 12)
    out: Tensor
    out, zeros, view, other, made = block(x, room.view(2, 2, 12))
    for each in (view, other):
        each[:, :3], each[:, 3:] = made[:, :3], made[:, 3:]
    return out + (zeros + room).mean(-1, keepdim=True)


def with_forward_of_their_own() -> nn.Module:
    blocks = [Block() for _ in range(3)]
    for block in blocks:
        block.forward = F.relu  # type: ignore[method-assign, assignment]
    return Chain([*blocks, Block()])


class Again(nn.Module):
    """Calls a block with what it put out before, then another one just like it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other, self.head = nn.Linear(5, 8), Block(), Block(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.one(self.one(x)[:, :2]) + self.other(x[:, :2]))


class Adding(nn.Module):
    """Ties what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        note("Adding")
        return self.second(self.layer(x + y))


class Meeting(nn.Module):
    """Gives alike blocks two labels that lie to each other in one way, and in another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.one, self.other, self.head = Adding(), Adding(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, -1)
        first = self.one(torch.cat([a, b], -1), torch.cat([a, b], -1))
        return self.head(first + self.other(torch.cat([a, b], -1), torch.cat([b, a], -1)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "blocks": (lambda: Chain([Block() for _ in range(5)]), (1, 4, 5), 1, 5),
    "blocks of two kinds": (lambda: Chain([Block(), Block(8, 9), Block(), Block(8, 9)]), (1, 4, 5), 2, 4),
    "stages": (Pictures, (1, 3, 12, 12), 2, 8),
    "attention": (lambda: Chain([Attention() for _ in range(4)], attending), (1, 4, 5), 1, 4),
    "tied weights": (tied, (1, 4, 5), 2, 4),
    "one block twice": (same_twice, (1, 4, 5), 2, 3),
    "views": (lambda: Chain([Views() for _ in range(4)], of_views), (1, 4, 5), 1, 4),
    "writes to its input": (lambda: Chain([InPlace() for _ in range(3)]), (1, 4, 5), 1, 3),
    "writes to what others see": (lambda: Chain([InPlace() for _ in range(3)], written), (1, 4, 5), 3, 3),
    "changes itself": (lambda: Chain([Caching() for _ in range(3)]), (1, 4, 5), 3, 3),
    "is told from outside": (lambda: Chain([Flagged() for _ in range(3)], flagging), (1, 4, 5), 3, 3),
    "is told for once": (lambda: Chain([Flagged() for _ in range(3)], flagging_for_once), (1, 4, 5), 3, 3),
    "shares a module": (shared_by_all, (1, 4, 5), 2, 4),
    "shares modules inside": (shared_inside, (1, 4, 5), 2, 4),
    "fills a list": (lambda: Chain([Filling() for _ in range(3)], partial(filling, list)), (1, 4, 5), 3, 3),
    "fills a dict": (lambda: Chain([Filling() for _ in range(3)], partial(filling, dict)), (1, 4, 5), 3, 3),
    "is given the same twice": (lambda: Chain([Comparing() for _ in range(3)], comparing), (1, 4, 5), 10, 12),
    "writes behind a view": (lambda: Chain([Writing() for _ in range(3)], writing), (1, 4, 5), 3, 3),
    "views of views": (lambda: Chain([Rooms() for _ in range(3)], filling_rooms), (1, 4, 5), 1, 3),
    "code of their own": (with_forward_of_their_own, (1, 4, 5), 2, 2),
    "counts": (lambda: counting(Counting), (1, 4, 5), 4, 4),
    "counts in its class": (lambda: counting(CountingTogether), (1, 4, 5), 4, 4),
    "keeps tensors": (keeping, (1, 4, 5), 4, 4),
    "holds a function that remembers": (alternating, (1, 4, 5), 4, 4),
    "goes by a variable": (lambda: Chain([Moody() for _ in range(3)], in_a_mood), (1, 4, 5), 4, 6),
    "is given the same by turns": (lambda: Chain([Comparing() for _ in range(4)], by_turns), (1, 4, 5), 2, 4),
    "its own results": (Again, (1, 4, 5), 3, 3),
    "meets itself, or others": (Meeting, (1, 4, 5), 2, 2),
    "meets a constant": (lambda: Chain([Outside() for _ in range(3)]), (1, 4, 5), 2, 3),
}
"""Name -> network, shape of its input, and how many calls of blocks must run, of how many."""


@pytest.mark.parametrize("name", NETWORKS)
def test_traces_say_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape, must_run, count = NETWORKS[name]
    torch.manual_seed(0)
    model, example = build().eval(), (torch.randn(shape),)
    runs: list[int] = []

    def follow() -> Any:
        ran.clear()
        found = said(trace(model, example))
        runs.append(len(ran))
        return found

    shorter, longer = both_ways(monkeypatch, follow, "skips_repeats")
    assert shorter == longer
    assert runs == [must_run, count]


@pytest.mark.parametrize("name", NETWORKS)
def test_structures_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape, *_ = NETWORKS[name]
    torch.manual_seed(0)
    model, example = build().eval(), (torch.randn(shape),)
    shorter, longer = both_ways(monkeypatch, lambda: plain(find_groups(model, example)), "skips_repeats")
    assert shorter == longer


class Fixed(nn.Module):
    """Its code takes a part of what it made, by a number that only the dense width fits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        note("Fixed")
        hidden = self.first(x).relu()
        return x + self.second(hidden[..., :6] + F.gelu(hidden[..., -6:]))


def test_what_fails_in_one_block_is_frozen_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = Chain([Fixed() for _ in range(4)]).eval(), (torch.randn(1, 4, 5),)
    shorter, longer = both_ways(monkeypatch, lambda: find_groups(model, example), "skips_repeats")
    assert [(each.name, each.width) for each in shorter.frozen] == [
        (each.name, each.width) for each in longer.frozen
    ]
    assert not [group.name for group in shorter.groups if group.name.startswith("blocks")]


def test_blocks_are_left_as_they_were() -> None:
    model = Chain([Block() for _ in range(3)]).eval()
    before = [dict(vars(module)) for module in model.modules()]
    find_groups(model, (torch.randn(1, 4, 5),))
    assert [dict(vars(module)) for module in model.modules()] == before


def test_a_block_that_fails_is_told_of_by_name() -> None:
    class Failing(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(x)  # another width is expected

    model = Chain([Failing() for _ in range(3)]).eval()
    with pytest.raises(Exception, match="in `blocks.0.second`"):
        find_groups(model, (torch.randn(1, 4, 5),))
