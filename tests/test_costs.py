from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from prunecli.costs import count_units, describe, measure_costs
from prunecli.errors import TraceError

CONV = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4)
)


class Functional(nn.Module):
    """Uses its parameters, and those of a child that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.child = nn.Linear(5, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x @ self.weight.T, self.child.weight, self.child.bias) * self.scale


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids))


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(x))


class AsksForValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum().item() == 0 else x


def test_convolutions_agree_with_the_formula() -> None:
    costs = measure_costs(CONV, [torch.zeros(1, 3, 10, 10)])
    assert costs.macs_of == {"0": 10 * 10 * 8 * 3 * 9, "3": 8 * 8 * 8 * 2 * 9}
    assert costs.params_of == {"0": 8 * 27 + 8, "1": 16, "3": 8 * 18 + 8}
    assert (costs.macs, costs.params) == (sum(costs.macs_of.values()), sum(costs.params_of.values()))
    assert costs.parameter_bytes == 4 * costs.params
    assert costs.not_counted == ()


def test_functional_calls_count_where_the_parameter_lives() -> None:
    costs = measure_costs(Functional(), [torch.zeros(1, 4)])
    assert costs.macs_of == {"": 20, "child": 30}
    assert costs.params_of == {"": 26, "child": 36}


def test_tied_parameters_count_once_and_their_arithmetic_where_it_runs() -> None:
    costs = measure_costs(Tied(), [torch.zeros(1, 3, dtype=torch.int64)])
    assert costs.params_of == {"embedding": 40}
    assert costs.macs_of == {"head": 3 * 40}


def test_a_module_that_runs_twice_counts_twice() -> None:
    assert measure_costs(Repeated(), [torch.zeros(1, 4)]).macs_of == {"first": 32}


def test_attention_is_not_hidden_by_the_fast_path() -> None:
    fused = torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(64, 4, dim_feedforward=64, batch_first=True).eval()
    tokens, width = 147, 64
    with torch.no_grad():
        costs = measure_costs(layer, [torch.zeros(1, tokens, width)])
    assert costs.macs == tokens * (3 + 1 + 2) * width * width + 2 * tokens * tokens * width
    assert torch.backends.mha.get_fastpath_enabled() == fused


@pytest.mark.parametrize(("kind", "gates"), ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)))
def test_recurrent_layers_count(kind: type[nn.RNNBase], gates: int) -> None:
    assert measure_costs(kind(8, 16), [torch.zeros(5, 1, 8)]).macs == 5 * gates * 16 * (8 + 16)


def test_what_torch_cannot_count_is_listed() -> None:
    costs = measure_costs(nn.Bilinear(4, 5, 6), [torch.zeros(1, 4), torch.zeros(1, 5)])
    assert (costs.macs, costs.not_counted) == (0, ("_trilinear at the root",))


def test_code_that_asks_for_values_is_counted_on_the_cpu() -> None:
    assert measure_costs(AsksForValues(), [torch.zeros(1, 4)]).macs == 16


def test_inputs_by_name() -> None:
    class Named(nn.Module):
        def forward(self, *, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    assert measure_costs(Named(), [], {"x": torch.zeros(1, 2, 3), "y": torch.zeros(1, 3, 4)}).macs == 24


def test_a_model_that_does_not_run_is_a_trace_error() -> None:
    with pytest.raises(TraceError, match="does not run on one sample: RuntimeError"):
        measure_costs(nn.Linear(5, 4), [torch.zeros(1, 4)])


def test_the_model_is_left_alone() -> None:
    seen: list[nn.Module] = []
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    for sample in (torch.zeros(1, 4), torch.zeros(1, 5)):
        try:
            measure_costs(model, [sample])
        except TraceError:
            seen.append(model)
    assert seen
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_the_facts_of_a_model_list_its_layers_in_order() -> None:
    facts = describe(CONV, [torch.zeros(1, 3, 10, 10)])
    assert [(layer.name, layer.kind, layer.units) for layer in facts.layers] == [
        ("0", "Conv2d", 8),
        ("1", "BatchNorm2d", 8),
        ("3", "Conv2d", 8),
    ]
    assert facts.macs == sum(layer.macs for layer in facts.layers) > 0
    assert facts.params == sum(parameter.numel() for parameter in CONV.parameters())


@pytest.mark.parametrize(
    ("module", "units"),
    (
        (nn.ConvTranspose2d(4, 6, 3), 6),
        (nn.Linear(4, 6), 6),
        (nn.LayerNorm(6), 6),
        (nn.GroupNorm(2, 6), 6),
        (nn.Embedding(10, 6), 6),
        (nn.PReLU(6), 6),
        (nn.MultiheadAttention(6, 2), 6),
        (nn.ReLU(), None),
        (nn.LSTM(4, 6), None),
    ),
)
def test_units_of_a_layer(module: nn.Module, units: int | None) -> None:
    assert count_units(module) == units


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "macs"),
    (("resnet50", 4089.2), ("convnext_tiny", 4455.5), ("vit_b_16", 17563.8), ("swin_t", 4490.6)),
)
def test_known_networks_agree_with_the_published_figures(name: str, macs: float) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.get_model(name)
    assert measure_costs(model, [torch.zeros(1, 3, 224, 224)]).macs / 1e6 == pytest.approx(macs, abs=0.05)


def test_activations_are_counted_per_layer_and_at_their_peak() -> None:
    model = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 5))
    facts = describe(model, [torch.zeros(1, 10)])
    assert [layer.activation_bytes for layer in facts.layers] == [400, 20]
    assert facts.peak_activation_bytes == 800  # what the first layer put out, and what ReLU makes of it


def test_a_residual_that_waits_adds_to_the_peak() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 100), nn.Linear(100, 100)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            waiting = self.first(x)
            return waiting + self.second(waiting).relu_()

    facts = describe(Block(), [torch.zeros(1, 8)])
    assert facts.peak_activation_bytes == 3 * 400  # waiting, the second's, their sum


def test_views_and_in_place_operations_hold_nothing_of_their_own() -> None:
    class Views(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = x * 2
            return made.view(-1).reshape(5, 2).t().add_(1)

    assert describe(Views(), [torch.zeros(1, 10)]).peak_activation_bytes == 40
