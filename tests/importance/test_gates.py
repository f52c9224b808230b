"""Gates in a forward pass against what parameters say about them, on every small network there is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import VisionTransformer

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import CallKey, Group, Site, SiteKind
from prunecli.importance import Gate, ScoreBN, score
from prunecli.importance.gates import Gating, Place, find_places, gate_sites, refuse_ungated
from tests.graph.nets import BY_NAME, CASES, Case
from tests.importance.gated import Setting, bent, gate_gradients, looking, setting
from tests.structures import layer, shuffle

NO_TWIN = {
    "ArgmaxOutput": "has no gradient",
    "CachedBias": "keeps biases from the pass before",
    "GroupedTransposed": "has a weight whose entries make units of one group and read those of another",
    "Noise": "is another network each time",
    "TiedWeights": "reads units by the weight that makes them",
}
COMPARED = [each for each in CASES if each.groups and each.name not in NO_TWIN]


def assert_near(found: Tensor, expected: Tensor, name: str) -> None:
    """Compare relative to the largest; where that is next to nothing, it is rounding."""
    allowed = 1e-9 * float(expected.abs().max()) + 1e-12
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("case", COMPARED, ids=lambda each: each.name)
def test_gates_of_each_sample_have_the_gradients_that_parameters_say(case: Case) -> None:
    where = setting(case)
    with looking(where) as look:
        found = look.gate_gradients
        shared = look.gate_sums
        gated = look.conditions.gated
        alone = [gate_gradients(where, tuple(t[b : b + 1] for t in where.inputs)) for b in range(6)]
    for group in gated:
        expected = torch.stack([each[group.name] for each in alone]) / 6
        assert_near(found[group.name], expected, group.name)
        assert_near(shared[group.name], expected.sum(0), group.name)


def test_only_heads_that_nobody_runs_have_no_gates() -> None:
    ungated = {
        case.name: [group.name for group in setting(case).groups if refuse_ungated(group)] for case in CASES
    }
    assert {name: names for name, names in ungated.items() if names} == {"AuxiliaryHead": ["auxiliary.0"]}


def network(forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    """Return a network of these layers, with this forward, in float64."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in layers.items():
                setattr(self, name, module)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    torch.manual_seed(0)
    return Network().double().eval()


def of(model: nn.Module, *shape: int, samples: int = 6) -> Setting:
    """Find the groups of a network and draw a sample."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1)
    shuffle(model)
    example = torch.randn(samples, *shape, dtype=torch.float64)
    return Setting(model, find_groups(model, (example[:1],)), (example,))


class Bias(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def added(model: nn.Module, x: Tensor) -> Tensor:
    x = model.one(x)
    x += model.bias.bias
    x = F.relu_(x)
    return model.two(x)


def added_before(model: nn.Module, x: Tensor) -> Tensor:
    return model.two(torch.tanh(model.bias.bias + model.one(x)))


def written(model: nn.Module, x: Tensor) -> Tensor:
    x = model.norm(model.one(x))
    x.mul_(2).sub_(0.1)
    y = x
    y.clamp_(-1, 3)
    return model.two(x.relu_())


def added_in_place(model: nn.Module, x: Tensor) -> Tensor:
    x = model.one(x)
    torch.add(x, model.bias.bias, out=x) if False else x.add_(model.bias.bias)  # the result is dropped
    return model.two(x * x)


@pytest.mark.parametrize("forward", (added, added_before, written, added_in_place), ids=lambda f: f.__name__)
def test_code_that_adds_parameters_and_writes_in_place(forward: Callable[..., Tensor]) -> None:
    layers = {"one": nn.Linear(4, 5), "two": nn.Linear(5, 3), "norm": nn.BatchNorm1d(5), "bias": Bias(5)}
    where = of(network(forward, **layers), 4)
    (group,) = where.groups
    with looking(where) as look:
        found, products = look.gate_gradients, look.gate_products
        alone = [gate_gradients(where, (where.inputs[0][b : b + 1],)) for b in range(6)]
    expected = torch.stack([each[group.name] for each in alone])
    assert_near(found[group.name] * 6, expected, group.name)
    assert_near(products[group.name].mean, expected, group.name)


def test_a_result_written_in_place_is_gated_in_place() -> None:
    """Later code reads what the call wrote, whether it takes the result of the call or not."""
    key = CallKey("", "sub_", 0)
    lone = Group(
        "lone", 3, (), sites=(Site(key, SiteKind.READ, None, -1, 3, np.arange(3), np.arange(3), ()),)
    )
    gates = {"lone": torch.tensor([2.0, 3.0, 0.0], requires_grad=True)}
    data = torch.tensor([[1.0, 2.0, 3.0]])
    with Gating([""], find_places([lone]), gates, samples=1):
        x = data * 2
        x.sub_(1)  # 1, 3, 5
        total = (x * torch.tensor([1.0, 10.0, 100.0])).sum()
    assert total.item() == 2 + 90
    assert torch.autograd.grad(total, gates["lone"])[0].tolist() == [1, 30, 500]


@pytest.mark.parametrize("parts", (2, 4))
def test_windows_lie_one_after_the_other_in_the_first_dimension(parts: int) -> None:
    """As in Swin: [samples, length, width] becomes [samples * parts, length / parts, width]."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        samples = x.shape[0]
        windows = x.unflatten(1, (parts, -1)).flatten(0, 1)
        return model.two(model.one(windows).tanh()).unflatten(0, (samples, parts)).mean((1, 2))

    where = of(network(forward, one=nn.Linear(3, 5), two=nn.Linear(5, 2)), 8, 3)
    with looking(where) as look:
        found = look.gate_gradients["one"]
        alone = [gate_gradients(where, (where.inputs[0][b : b + 1],))["one"] for b in range(6)]
    assert_near(found * 6, torch.stack(alone), "one")


def time_first(model: nn.Module, x: Tensor) -> Tensor:
    return model.two(model.one(x.transpose(0, 1)).tanh().sum(0))


@pytest.mark.parametrize("length", (5, 6, 12))
def test_samples_that_cannot_be_told_apart_are_refused(length: int) -> None:
    """Even where the length happens to be the number of samples."""
    where = of(network(time_first, one=nn.Linear(3, 5), two=nn.Linear(5, 2)), length, 3)
    with looking(where) as look:
        expected = gate_gradients(where, where.inputs)["one"]
        assert_near(look.gate_sums["one"], expected, "one")
        with pytest.raises(ScoreError, match="samples cannot be told apart"):
            _ = look.gate_gradients
    names = ["taylor-so"]
    found = score(where.model, where.structure, [where.batch], bent, names, method_args={"hessian": "auto"})
    assert found["taylor-so"].by_group["one"].isfinite().all()
    with pytest.raises(ScoreError, match="cannot be told apart"):
        score(where.model, where.structure, [where.batch], bent, names, method_args={"hessian": "exact-gn"})


@pytest.mark.parametrize("samples", (4, 5, 6, 7))
def test_places_that_all_samples_share(samples: int) -> None:
    """A position embedding is looked up without a batch, and may be as long as the batch."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.out = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out((self.words(tokens) + self.places(torch.arange(tokens.shape[1]))).tanh().mean(1))

    torch.manual_seed(0)
    model = Places().double().eval()
    tokens = torch.randint(9, (samples, 5))
    where = Setting(model, find_groups(model, (tokens[:1],)), (tokens,))
    with looking(where) as look:
        if samples == 5:
            with pytest.raises(ScoreError, match="cannot be told apart"):
                _ = look.gate_gradients
            return
        found = look.gate_gradients["words"]
        alone = [gate_gradients(where, (tokens[b : b + 1],))["words"] for b in range(samples)]
    assert_near(found * samples, torch.stack(alone), "words")


def test_a_position_of_attention_belongs_to_a_head_and_to_a_place_in_it() -> None:
    torch.manual_seed(0)
    options = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8}
    model = VisionTransformer(**options, mlp_dim=10, num_classes=3).double().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    where = of(model, 3, 8, 8, samples=3)
    owners = {
        tuple(sorted(group.width for group, _ in place.owners))
        for places in find_places(where.groups).values()
        for place in places
    }
    assert (2, 4) in owners  # two heads of four places
    with looking(where) as look:
        found = look.gate_gradients
        expected = gate_gradients(where, where.inputs)
    for name, gradient in found.items():
        assert_near(gradient.sum(0), expected[name], name)


def conv_norm_setting() -> Setting:
    layers = (nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.Flatten())
    return of(nn.Sequential(*layers, nn.Linear(12, 3)).double().eval(), 2, 4, 4, samples=8)


@pytest.mark.parametrize("score_bn", tuple(ScoreBN))
def test_gates_before_normalisation_lose_their_gradient_where_it_uses_the_batch(score_bn: ScoreBN) -> None:
    where = conv_norm_setting()
    largest = {}
    for gate in Gate:
        with looking(where, score_bn=score_bn, gate=gate) as look:
            (site,) = gate_sites(look.conditions.groups[0])
            assert site.tensors == (
                ("0.bias", "0.weight") if gate is Gate.BEFORE_BN else ("1.bias", "1.weight")
            )
            largest[gate] = float(look.gate_sums["0"].abs().max())
    vanishes = score_bn is ScoreBN.TRAIN
    assert (largest[Gate.BEFORE_BN] < 1e-3 * largest[Gate.AFTER_BN]) is vanishes


def test_a_gate_before_normalisation_in_eval_mode_is_that_on_the_layer() -> None:
    where = conv_norm_setting()
    with looking(where, gate=Gate.BEFORE_BN) as look:
        found = look.gate_sums["0"]
    parameters = dict(where.model.named_parameters())
    loss = bent(where.model(*where.inputs), None)
    weight, bias = torch.autograd.grad(loss, [parameters["0.weight"], parameters["0.bias"]])
    expected = (weight * parameters["0.weight"]).sum((1, 2, 3)) + bias * parameters["0.bias"]
    assert_near(found, expected.detach(), "0")
    before = score(where.model, where.structure, [where.batch], bent, gate=Gate.BEFORE_BN)["taylor-fo"]
    torch.testing.assert_close(before.by_group["0"], found**2)
    assert before.about.gate == "before-bn"


def test_a_forward_that_takes_another_path_is_named() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        y = model.one(x)
        return model.two(y if x.shape[0] == 1 else y.t()[:, :4].t()[:, :4].repeat(1, 2)[:, :5])

    where = of(network(forward, one=nn.Linear(4, 5), two=nn.Linear(5, 3)), 4)
    key = CallKey("one", "linear", 0)
    made = where.groups[0].members[0]
    site = Site(key, SiteKind.MADE, None, -1, 7, made.positions, made.units, ("one.weight", "one.bias"))
    group = Group("one", 7, where.groups[0].members, sites=(site,))
    with looking(where) as look:
        object.__setattr__(look.conditions, "groups", (group,))
        with pytest.raises(
            ScoreError, match=r"`linear` in `one` holds \[6, 5\].*has 7 positions along dimension -1"
        ):
            _ = look.gate_sums


def test_factors_multiply_where_a_position_has_several_owners() -> None:
    case = BY_NAME["ViewAttention"]
    where = setting(case)
    places = [place for found in find_places(where.groups).values() for place in found]
    shared = next(place for place in places if len(place.owners) > 1)
    gates = {group.name: torch.arange(2.0, 2 + group.width) for group, _ in shared.owners}
    factors = shared.factors(gates)
    for position in range(shared.length):
        expected = 1.0
        for group, site in shared.owners:
            for unit in site.units[site.positions == position]:
                expected *= float(gates[group.name][unit])
        assert float(factors[position]) == expected


def test_gradients_that_are_cut_off_are_an_error_for_every_look() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model.three(model.one(x).detach() + model.two(x))

    layers = {"one": nn.Linear(4, 5), "two": nn.Linear(4, 5), "three": nn.Linear(5, 3)}
    where = of(network(forward, **layers), 4)
    sites = [site for group in where.groups for site in group.sites]
    groups = tuple(
        Group(
            name, 5, tuple(layer(name, 5, gated=True)), sites=tuple(s for s in sites if s.call.module == name)
        )
        for name in ("one", "two")
    )
    for look_at in ("gate_gradients", "gate_sums", "gate_products"):
        with looking(where) as look:
            object.__setattr__(look.conditions, "groups", groups)
            with pytest.raises(ScoreError, match="does not reach `one`, though forward reads it"):
                getattr(look, look_at)


def test_each_place_is_shown_before_and_behind_its_gate() -> None:
    where = conv_norm_setting()
    seen: list[tuple[Place, Tensor, Tensor]] = []
    with looking(where) as look:
        gates = {"0": torch.full((5,), 2.0, dtype=torch.float64)}
        with look.gating(gates, shown=lambda *each: seen.append(each)):
            pass
    ((place, before, after),) = [each for each in seen if each[0].owners[0][0].name == "0"]
    assert (place.dim, place.length) == (-3, 5)
    assert torch.equal(after, 2 * before)
    assert cross_entropy(after.mean((2, 3)), torch.zeros(8, dtype=torch.int64)).isfinite()
