"""`taylor-fo` against twins that put real gates into the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Group, Role, Structure
from prunecli.importance import ScoreBN, score
from tests.structures import Case, conv_norm, layer, member, mlp, reader, residual, shuffle, structure_of


class Gate(nn.Module):
    """Multiply each channel by its entry of z."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def forward(self, x: Tensor) -> Tensor:
        return x * self.z.reshape(1, -1, *[1] * (x.ndim - 2))


GATED_AFTER = {
    "mlp": {"0": ["0"], "2": ["2"]},
    "conv_norm": {"0": ["1"], "3": ["4"]},
    "residual": {
        "stem": ["stem_norm", "out1_norm", "out2_norm"],  # one gate, three places
        "in1": ["in1_norm"],
        "in2": ["in2_norm"],
    },
}


def twin(
    case: Case, batches: list[tuple[tuple[Tensor], Tensor]], gated_after: Mapping[str, list[str]]
) -> dict[str, Tensor]:
    """Score by gates: square the gradient of each gate per micro-batch, then take the mean."""
    gates = {}
    for group in case.structure.groups:
        gates[group.name] = torch.ones(group.width, dtype=torch.float64, requires_grad=True)
        for name in gated_after[group.name]:
            parent, _, child = name.rpartition(".")
            inside = case.model.get_submodule(parent)._modules
            inside[child] = nn.Sequential(inside[child], Gate(gates[group.name]))
    scores = {name: torch.zeros_like(gate) for name, gate in gates.items()}
    for (inputs,), targets in batches:
        found = torch.autograd.grad(cross_entropy(case.model(inputs), targets), list(gates.values()))
        for name, gradient in zip(gates, found, strict=True):
            scores[name] += gradient**2 / len(batches)
    return scores


@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
@pytest.mark.parametrize("score_bn", tuple(ScoreBN))
def test_agrees_with_real_gates(make: Callable[[], Case], score_bn: ScoreBN) -> None:
    case = make()
    batches = [case.batch(8, seed=1), case.batch(8, seed=2), case.batch(3, seed=3)]
    found = score(case.model, case.structure, batches, cross_entropy, micro_batch=8, score_bn=score_bn)
    case.model.train(score_bn is ScoreBN.TRAIN)
    assert_close(found["taylor-fo"].by_group, twin(case, batches, GATED_AFTER[case.name]))


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-18)


def test_agrees_with_real_gates_on_stages_that_tracing_finds() -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=5).double().eval()
    shuffle(model)
    structure = find_groups(model, (torch.zeros(1, 3, 32, 32, dtype=torch.float64),))
    case = Case("resnet18", model, structure, (3, 32, 32), 5)
    batches = [case.batch(3, seed=1), case.batch(3, seed=2)]
    found = score(model, structure, batches, cross_entropy, micro_batch=3)["taylor-fo"].by_group
    norms = {
        group.name: sorted({m.tensor.rpartition(".")[0] for m in group.producers if m.role is Role.SCALE})
        for group in structure.groups
    }
    assert norms["conv1"] == ["bn1", "layer1.0.bn2", "layer1.1.bn2"]
    assert_close(found, twin(case, batches, norms))


def by_hand(gated: bool) -> tuple[nn.Module, Structure]:
    """Return y = 2 a + 1 b + 4 c, where a = 3x, b = -x, c = 0 x."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [-1.0], [0.0]]))
        model[1].weight.copy_(torch.tensor([[2.0, 1.0, 4.0]]))
    group = Group("0", 3, (*layer("0", 3, gated=gated, bias=False), *reader("1", 3)))
    return model, structure_of(model, [group])


def mean_output(output: Tensor, targets: Tensor) -> Tensor:
    return output.mean()


@pytest.mark.parametrize("gated", (True, False))
def test_solved_by_hand(gated: bool) -> None:
    model, structure = by_hand(gated)
    # dE/dz = (6 x, -x, 0). Micro-batches of mean 1 and -3: squares (36, 1, 0) and (324, 9, 0).
    inputs = torch.tensor([[0.0], [2.0], [-3.0]], dtype=torch.float64)
    batches = [((inputs[:2],), torch.zeros(2)), ((inputs[2:],), torch.zeros(1))]
    found = score(model, structure, batches, mean_output, micro_batch=2)["taylor-fo"]
    assert found.by_group["0"].tolist() == [180, 5, 0]
    assert (found.about.batches, found.about.samples, found.about.micro_batch) == (2, 3, 2)


def test_square_comes_after_the_sum_over_samples() -> None:
    model, structure = by_hand(gated=True)
    inputs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    whole = score(model, structure, [(inputs, torch.zeros(2))], mean_output, micro_batch=2)
    single = score(model, structure, [(inputs, torch.zeros(2))], mean_output, micro_batch=1)
    assert whole["taylor-fo"].by_group["0"].tolist() == [0, 0, 0]
    assert single["taylor-fo"].by_group["0"].tolist() == [36, 1, 0]


class Tied(nn.Module):
    """One square matrix, used twice: its rows make the units and its columns read them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.gate = Gate(torch.ones(3, dtype=torch.float64, requires_grad=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.second(self.gate(self.first(x)).tanh()))


def test_tied_weights_share_their_gate() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    made = [member("first.weight", 0, "weight", "producer", 3, gated=True)]
    read = [member("first.weight", 1, "weight", "consumer", 3)]
    structure = structure_of(
        model, [Group("first", 3, (*made, *read))], aliases={"second.weight": "first.weight"}
    )
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    found = score(model, structure, [(inputs, targets)], cross_entropy)["taylor-fo"].by_group
    (expected,) = torch.autograd.grad(cross_entropy(model(inputs), targets), [model.gate.z])
    torch.testing.assert_close(found["first"], expected**2)

    model.second.weight = nn.Parameter(model.first.weight.data)  # tied by storage, not by object
    found = score(model, structure, [(inputs, targets)], cross_entropy)["taylor-fo"].by_group
    torch.testing.assert_close(found["first"], expected**2)


def test_refuses_units_that_no_parameter_makes_or_reads() -> None:
    case = mlp()
    lone = Group("lone", 6, (member("0.bias", 0, "bias", "producer", 6),))
    with pytest.raises(ScoreError, match="`taylor-fo` cannot score `lone`, which has no parameter"):
        score(case.model, structure_of(case.model, [lone]), [case.batch()], cross_entropy)
