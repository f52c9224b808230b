"""Trained weights behind a cut: on the units that the method selects, and on those of another plan."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunecli.graph.cutting import cut
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Structure
from prunecli.importance import score
from prunecli.importance.sparse_columns import Course, Reader, learn, train_on
from prunecli.parity import relative_error
from prunecli.recovery import Learning, learn_readers
from tests.structures import Case, conv_norm, mlp, residual, shuffle

Batches = list[tuple[tuple[Tensor], Tensor]]


class Concat(nn.Module):
    """Two branches, concatenated and read by a strided convolution in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 6, 1)
        self.join = nn.Conv2d(12, 4, 3, stride=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.last, self.head = nn.Conv2d(6, 4, 1, groups=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)
        return self.head(self.last(self.up(self.join(x).relu()).relu()).relu().mean((2, 3)))


def concat() -> Case:
    torch.manual_seed(0)
    model = Concat()
    shuffle(model)
    model = model.double().eval()
    structure = find_groups(model, (torch.zeros(1, 2, 8, 8, dtype=torch.float64),))
    return Case("concat", model, structure, (2, 8, 8), 3)


EVERY_CASE = pytest.mark.parametrize("make", (mlp, conv_norm, residual, concat))


def sample(case: Case) -> Batches:
    return [case.batch(20, seed) for seed in (1, 2)]


def selection(case: Case, keep: str = "0.5") -> dict[str, np.ndarray]:
    arguments = {"keep": keep}
    found = score(case.model, case.structure, sample(case), None, ["i-spasp-train"], method_args=arguments)
    return {name: (values >= 1).numpy() for name, values in found["i-spasp-train"].by_group.items()}


def learnt(
    case: Case, kept: dict[str, np.ndarray], **options: object
) -> tuple[nn.Module, nn.Module, Learning]:
    plain = cut(case.model, case.structure, kept)
    trained, done = learn_readers(case.model, plain, case.structure, kept, sample(case), **options)  # type: ignore[arg-type]
    return plain, trained, done


@EVERY_CASE
def test_layers_come_closer_to_what_they_put_out(make: Callable[[], Case]) -> None:
    case = make()
    kept = selection(case)
    plain, trained, done = learnt(case, kept)
    assert set(done.selected) == set(kept)
    assert (done.samples, done.fixed, done.skipped) == (40, (), ())
    readers = {
        member.tensor.removesuffix(".weight") for group in case.structure.groups for member in group.consumers
    }
    assert {layer.layer for layer in done.layers} == readers
    for layer in done.layers:
        assert layer.error_after >= 0
        assert layer.error_after < layer.error_before or layer.error_before == 0  # only silent units went
    changed = {
        name
        for name, tensor in trained.state_dict().items()
        if not torch.equal(tensor, plain.state_dict()[name])
    }
    assert changed == {f"{layer.layer}.weight" for layer in done.layers if layer.error_before}


def test_the_weights_are_those_of_the_method() -> None:
    case = mlp()
    kept = selection(case)
    _, trained, done = learnt(case, kept)
    inputs = torch.cat([each for (each,), _ in sample(case)])
    hidden = case.model[:4](inputs).T.detach()
    found = learn([Reader(hidden @ hidden.T, case.model[4].weight.detach(), torch.arange(5))], 5, 3)
    assert torch.equal(found.support, torch.from_numpy(kept["2"]))
    torch.testing.assert_close(trained[4].weight.detach(), found.weights[0][:, found.support])
    plain = case.model[4].weight.detach() * found.support
    before = ((plain - case.model[4].weight.detach()) @ hidden).square().sum()
    (refit,) = (layer for layer in done.layers if layer.layer == "4")
    assert refit.error_after == pytest.approx(2 * found.relative[-1])
    assert refit.error_before == pytest.approx(float(before) / found.energy)


def test_other_units_get_weights_trained_on_them() -> None:
    case = mlp()
    kept = {name: ~stays for name, stays in selection(case).items()}
    kept["0"] = np.ones(6, dtype=bool)
    _, trained, done = learnt(case, kept)
    assert (done.selected, done.fixed) == ((), ("2",))
    inputs = torch.cat([each for (each,), _ in sample(case)])
    hidden, support = case.model[:4](inputs).T.detach(), torch.from_numpy(kept["2"])
    found = train_on([Reader(hidden @ hidden.T, case.model[4].weight.detach(), torch.arange(5))], support)
    torch.testing.assert_close(trained[4].weight.detach(), found.weights[0][:, support])


@EVERY_CASE
def test_repeated_units_are_made_up_for(make: Callable[[], Case]) -> None:
    """Units that are there twice: what is left can do all that there was, by steps on any plan."""
    case = make()
    group = case.structure.groups[0]
    tensors = {**dict(case.model.named_parameters()), **dict(case.model.named_buffers())}
    half = group.width // 2
    for member in group.producers:
        tensors[member.tensor].data[:half] = tensors[member.tensor].data[half : 2 * half]
    kept = {group.name: np.arange(group.width) >= half}
    plain, trained, _ = learnt(case, kept, course=Course(iterations=400))
    (inputs,), _ = case.batch(8, seed=9)
    before = relative_error(plain(inputs), case.model(inputs))
    assert before > 0.01
    assert relative_error(trained(inputs), case.model(inputs)) < 0.1 * before


def test_neither_model_is_touched() -> None:
    case = residual()
    kept = selection(case)
    plain = cut(case.model, case.structure, kept)
    before = copy.deepcopy([case.model.state_dict(), plain.state_dict()])
    learn_readers(case.model.train(), plain, case.structure, kept, sample(case))
    for state, model in zip(before, (case.model, plain), strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert case.model.training
    assert not any(module._forward_hooks for module in (*case.model.modules(), *plain.modules()))


def test_nothing_cut_changes_nothing() -> None:
    case = mlp()
    kept = {group.name: np.ones(group.width, dtype=bool) for group in case.structure.groups}
    plain, trained, done = learnt(case, kept)
    assert (done.layers, done.selected, done.fixed) == ((), (), ())
    for one, other in zip(plain.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)


def structured(model: nn.Module) -> tuple[nn.Module, Structure]:
    model = model.double().eval()
    return model, find_groups(model, (torch.zeros(1, 4, dtype=torch.float64),))


def test_weights_that_others_use_stay_as_they_were_cut() -> None:
    torch.manual_seed(0)
    parts = [
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ]
    parts[4].weight = parts[2].weight
    model, structure = structured(nn.Sequential(*parts))
    group = structure.groups[0]
    kept = {group.name: np.arange(group.width) > 1}
    plain = cut(model, structure, kept)
    batches = [((torch.randn(9, 4, dtype=torch.float64),), torch.zeros(9, dtype=torch.int64))]
    trained, done = learn_readers(model, plain, structure, kept, batches)
    assert "`2`, whose weight is tied to another" in done.skipped
    assert torch.equal(trained[2].weight, plain[2].weight)


def test_weights_that_are_made_anew_stay_as_they_were_cut() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.table = nn.Linear(4, 5), nn.Parameter(torch.randn(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.body(x).relu(), self.table.T)

    model, structure = structured(Turned())
    kept = {"body": np.arange(5) > 1}
    batches = [((torch.randn(9, 4, dtype=torch.float64),), torch.zeros(9, dtype=torch.int64))]
    plain = cut(model, structure, kept)
    trained, done = learn_readers(model, plain, structure, kept, batches)
    assert done.layers == ()
    assert done.skipped == ("`table`, which does not use its weight as it is",)
    assert torch.equal(trained.table, plain.table)
