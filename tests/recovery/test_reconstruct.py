"""Re-solving: networks in which what is cut can be made up for exactly, and what must stay as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunecli import find_groups
from prunecli.graph.cutting import cut
from prunecli.graph.structure import Structure
from prunecli.parity import relative_error
from prunecli.recovery import Reconstruction, reconstruct
from prunecli.recovery.chains import find_chains
from tests.structures import shuffle

WIDTH = 6


class Block(nn.Module):
    """A residual block whose inner units repeat each other pairwise."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = nn.Conv2d(WIDTH, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


class AddsInPlace(Block):
    """The sum is written in place, and its result not taken."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        made = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        made.add_(x)
        return self.head(made.relu().mean((2, 3)))


class Concat(nn.Module):
    """Two branches of repeated units, concatenated and read by a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, WIDTH, 3, padding=1), nn.Conv2d(2, WIDTH, 1)
        self.join = nn.Conv2d(2 * WIDTH, 4, 3, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)
        return self.head(self.join(x).relu().mean((2, 3)))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(2 * 64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4), nn.Linear(4, 3)
    )


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(128, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3, bias=False))


def depthwise() -> nn.Module:
    """Repeated units pass a depthwise convolution before they are read."""
    return nn.Sequential(
        nn.Conv2d(2, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH), nn.BatchNorm2d(WIDTH),
        nn.ReLU(), nn.Conv2d(WIDTH, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Solid(nn.Module):
    """Pictures become volumes, whose repeated units a three-dimensional convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv3d(2, WIDTH, 3, padding=1), nn.BatchNorm3d(WIDTH)
        self.conv2 = nn.Conv3d(WIDTH, 4, (2, 3, 3), stride=(1, 2, 2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x.unflatten(2, (2, 4)))).relu()
        return self.head(self.conv2(x).relu().mean((2, 3, 4)))


MAKERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "residual": (Block, ("conv1",)),
    "sum in place": (AddsInPlace, ("conv1",)),
    "concat": (Concat, ("left", "right")),
    "linear": (perceptron, ("1",)),
    "no bias": (without_bias, ("1",)),
    "depthwise": (depthwise, ("0",)),
    "three dimensions": (Solid, ("conv1",)),
}


def repeated(name: str) -> tuple[nn.Module, Structure, dict[str, np.ndarray]]:
    """Return a network in which unit 2i + 1 of some groups is unit 2i again, and a cut of those copies."""
    torch.manual_seed(0)
    make, groups = MAKERS[name]
    model = make()
    shuffle(model)
    model = model.double().eval()
    structure = find_groups(model, (torch.randn(1, 2, 8, 8, dtype=torch.float64),))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {}
    for group in groups:
        for member in structure.by_name[group].producers:
            tensor = tensors[member.tensor].data
            tensor[1::2] = tensor[0::2]
        kept[group] = np.arange(structure.by_name[group].width) % 2 == 0
    return model, structure, kept


def sample(count: int = 32) -> Tensor:
    return torch.randn(count, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MAKERS)
def test_what_can_be_made_up_for_is(name: str) -> None:
    model, structure, kept = repeated(name)
    plain = cut(model, structure, kept)
    solved, done = reconstruct(model, plain, structure, kept, (sample(),))
    unseen = torch.randn(8, 2, 8, 8, dtype=torch.float64)
    before = relative_error(plain(unseen), model(unseen))
    after = relative_error(solved(unseen), model(unseen))
    assert before > 0.02
    assert after < 0.02 * before
    assert done.samples == 32
    assert done.layers
    for layer in done.layers:
        assert layer.error_after < layer.error_before


def test_neither_model_is_touched() -> None:
    model, structure, kept = repeated("residual")
    plain = cut(model, structure, kept)
    before = copy.deepcopy([model.state_dict(), plain.state_dict()])
    solved, _ = reconstruct(model.train(), plain, structure, kept, (sample(),))
    for state, each in zip(before, (model, plain), strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in each.state_dict().items())
    assert model.training
    assert not solved.training
    assert not any(module._forward_hooks for module in (*model.modules(), *solved.modules()))


def test_the_same_seed_gives_the_same_weights() -> None:
    model, structure, kept = repeated("concat")
    plain = cut(model, structure, kept)
    one, other = (reconstruct(model, plain, structure, kept, (sample(),), seed=4)[0] for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_nothing_cut_is_nothing_solved() -> None:
    model, structure, _ = repeated("residual")
    whole = {group.name: np.ones(group.width, dtype=bool) for group in structure.groups}
    solved, done = reconstruct(model, cut(model, structure, whole), structure, whole, (sample(),))
    assert done == Reconstruction(32, (), ())
    assert all(torch.equal(a, b) for a, b in zip(solved.parameters(), model.parameters(), strict=True))


def test_a_linear_reader_is_the_ridge_solution() -> None:
    """One consumer, no ReLU behind it: the plain least-squares twin."""
    model, structure, kept = repeated("linear")
    plain = cut(model, structure, kept)
    solved, _ = reconstruct(model, plain, structure, kept, (sample(),))
    hidden = plain[:3](sample()).detach().numpy()
    target = model[:4](sample()).detach().numpy()
    centred = hidden - hidden.mean(0)
    pull = 1e-3 * (centred**2).sum(0).mean()
    start = plain[3].weight.detach().numpy()
    weight = np.linalg.solve(
        centred.T @ centred + pull * np.eye(len(centred.T)),
        centred.T @ (target - target.mean(0)) + pull * start.T,
    ).T
    np.testing.assert_allclose(solved[3].weight.detach(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        solved[3].bias.detach(), target.mean(0) - weight @ hidden.mean(0), rtol=1e-4, atol=1e-5
    )


def test_errors_of_the_dense_model_are_raised() -> None:
    model, structure, kept = repeated("linear")
    plain = cut(model, structure, kept)

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of luck")

    model[2] = Failing()
    with pytest.raises(Exception, match="out of luck"):
        reconstruct(model, plain, structure, kept, (sample(),))


def test_chains_end_before_the_first_other_reader() -> None:
    model, _, _ = repeated("residual")
    chains = {chain.weight: chain for chain in find_chains(model, (sample(2),), {})}
    inner, outer, head = chains["conv1.weight"], chains["conv2.weight"], chains["head.weight"]
    assert (inner.norm is not None, inner.sum, inner.rectified) == (True, None, True)
    assert (outer.mean, outer.sum is not None, outer.rectified) == ("bn2.running_mean", True, True)
    assert head.is_output
    assert not head.rectified


class Shared(nn.Module):
    """One layer runs twice: its weight cannot be solved for one of the places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu())


def test_a_weight_that_two_calls_read_has_no_chain() -> None:
    assert find_chains(Shared(), (torch.zeros(2, 4),), {}) == ()
