"""`taylor-so` and `obd` against networks whose second derivatives are known."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.importance import ScoreBN, agreement, score
from prunecli.importance.curvature import Hessian, exact, gauss_newton
from prunecli.importance.look import Look
from tests.graph.nets import BY_NAME
from tests.importance.gated import Setting, bent, looking, loss_without, setting
from tests.structures import conv_norm, mlp, residual

EVERY_HESSIAN = pytest.mark.parametrize("hessian", tuple(each.value for each in Hessian))


def of(model: nn.Module, inputs: Tensor) -> Setting:
    return Setting(model, find_groups(model, (inputs[:1],)), (inputs,))


def quadratic(seed: int = 0) -> Setting:
    """Return a network without bends, whose squared error is a quadratic function of each gate."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double().eval()
    return of(model, torch.randn(8, 4, dtype=torch.float64))


def squared(output: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(output, torch.ones_like(output)) * 1.5


def changes(where: Setting, loss: Callable[..., Tensor]) -> Tensor:
    (group,) = where.groups
    dense = loss_without(where, group, [], loss)
    each = [loss_without(where, group, [unit], loss) - dense for unit in range(group.width)]
    return torch.tensor(each, dtype=torch.float64)


@pytest.mark.parametrize("hessian", ("auto", "exact-gn", "exact"))
def test_exact_where_the_loss_is_quadratic(hessian: str) -> None:
    where = quadratic()
    found = score(
        where.model, where.structure, [where.batch], squared, ["taylor-so", "oracle"],
        method_args={"hessian": hessian},
    )  # fmt: skip
    expected = changes(where, squared).square()
    torch.testing.assert_close(found["taylor-so"].by_group["0"], expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found["oracle"].by_group["0"], expected, rtol=1e-8, atol=0)


def at_a_minimum() -> Setting:
    """Solve the second layer of the quadratic network by least squares."""
    where = quadratic()
    (inputs,) = where.inputs
    with torch.no_grad():
        hidden = where.model[0](inputs)
        where.model[1].bias.zero_()
        where.model[1].weight.copy_(torch.linalg.lstsq(hidden, torch.ones(8, 3).double()).solution.T)
    return where


def test_obd_is_exact_at_the_minimum_of_a_quadratic_loss() -> None:
    where = at_a_minimum()
    found = score(where.model, where.structure, [where.batch], squared, ["obd", "taylor-so", "taylor-fo"])
    expected = changes(where, squared)
    assert (expected > 0).all()
    torch.testing.assert_close(found["obd"].by_group["0"], expected, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(found["taylor-so"].by_group["0"], expected**2, rtol=1e-7, atol=1e-12)
    assert found["taylor-fo"].by_group["0"].max() < 1e-20


def hessian_diagonals(where: Setting, loss: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Differentiate the loss twice, as a function of gates that multiply parameters."""
    # Not `torch.func.hessian`, whose batched second derivative of a layer norm is off (torch 2.15).
    from torch.autograd.functional import hessian
    from torch.func import functional_call

    parameters = {name: parameter.detach() for name, parameter in where.model.named_parameters()}
    found = {}
    for group in where.groups:

        def gated(gate: Tensor, group: object = group) -> Tensor:
            changed = dict(parameters)
            for member in group.members:  # type: ignore[attr-defined]
                if member.gated:
                    factor = torch.ones(parameters[member.tensor].shape[member.dim], dtype=gate.dtype)
                    factor = factor.index_put(
                        (torch.from_numpy(member.positions),), gate[torch.from_numpy(member.units)]
                    )
                    shape = [-1 if dim == member.dim else 1 for dim in range(changed[member.tensor].dim())]
                    changed[member.tensor] = changed[member.tensor] * factor.reshape(shape)
            output = functional_call(where.model, changed, where.inputs)
            return loss(output, where.batch[1])

        found[group.name] = hessian(gated, torch.ones(group.width, dtype=torch.float64)).diagonal()
    return found


PIECEWISE_LINEAR = ("Mlp", "ConvBn", "FlattenToLinear", "Inception", "ThreeProducers", "Prelu", "Transposed")


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_gauss_newton_is_the_hessian_on_piecewise_linear_networks(name: str) -> None:
    where = setting(BY_NAME[name])
    if name == "Mlp":  # its activation is smooth
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 3))
        where = of(model.double().eval(), torch.randn(6, 8, dtype=torch.float64))
    expected = hessian_diagonals(where, bent)
    with looking(where) as look:
        found, second = gauss_newton(look, only_if_exact=True), exact(look)
    assert found is not None
    for group, diagonal in expected.items():
        torch.testing.assert_close(found[group], diagonal, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(second[group], diagonal, rtol=1e-8, atol=1e-10)
        assert (found[group] >= -1e-12).all()


@pytest.mark.parametrize(
    "name", ("Residual", "Depthwise", "SqueezeExcite", "ViewAttention", "LayerNorm", "RmsNorm")
)
def test_a_second_backward_pass_is_the_hessian_everywhere(name: str) -> None:
    where = setting(BY_NAME[name], samples=3)
    expected = hessian_diagonals(where, bent)
    with looking(where) as look:
        found = exact(look)
    for group, diagonal in expected.items():
        torch.testing.assert_close(found[group], diagonal, rtol=1e-7, atol=1e-9)


def which_way(look: Look) -> str:
    """Return how `auto` finds curvature."""
    look.curvatures(Hessian.AUTO, 1)
    return "exact-gn" if look.conditions.known["piecewise linear"] else "exact"


@pytest.mark.parametrize(
    ("name", "way"),
    (
        ("ConvBn", "exact-gn"),
        ("Residual", "exact-gn"),
        ("Mlp", "exact"),  # GELU
        ("SqueezeExcite", "exact"),  # products of activations
        ("ViewAttention", "exact"),
        ("DictOutput", "exact"),  # Gauss-Newton takes one tensor
    ),
)
def test_auto_chooses_by_what_the_network_does(name: str, way: str) -> None:
    with looking(setting(BY_NAME[name])) as look:
        assert which_way(look) == way


def test_auto_takes_a_second_backward_pass_where_statistics_are_the_batch_s() -> None:
    where = setting(BY_NAME["ConvBn"])
    with looking(where, score_bn=ScoreBN.TRAIN) as look:
        found = look.curvatures(Hessian.AUTO, 1)
        assert (
            "piecewise linear" not in look.conditions.known or not look.conditions.known["piecewise linear"]
        )
        with pytest.raises(ScoreError, match="Gauss-Newton takes each sample by itself"):
            look.curvatures(Hessian.EXACT_GN, 1)
    for module in where.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().track_running_stats = False
    for group, diagonal in hessian_diagonals(where, bent).items():
        torch.testing.assert_close(found[group], diagonal, rtol=1e-7, atol=1e-9)


def test_norms_without_statistics_are_never_split() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    where = of(nn.Sequential(*layers).double().eval(), torch.randn(6, 4, dtype=torch.float64))
    layers[1].running_mean = layers[1].running_var = None  # tracing takes one sample, which has no variance
    found = []
    for memory in (1, 2**30):
        with looking(where, memory=memory) as look:
            found.append(look.curvatures(Hessian.AUTO, 1)["0"])
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], hessian_diagonals(where, bent)["0"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ("ConvBn", "ViewAttention"))
def test_random_probes_come_near(name: str) -> None:
    where = setting(BY_NAME[name], samples=3)
    with looking(where) as look:
        found, expected = look.curvatures(Hessian.HUTCHINSON, 2000), exact(look)
    scale = torch.cat(list(expected.values())).abs().max()
    for group, diagonal in expected.items():
        assert (found[group] - diagonal).abs().max() < 0.2 * scale


def test_random_probes_depend_on_the_seed_alone() -> None:
    case = conv_norm()

    def found(seed: int) -> bytes:
        options = {"method_args": {"hessian": "hutchinson", "draws": 3}, "seed": seed}
        return score(case.model, case.structure, [case.batch()], cross_entropy, ["obd"], **options)[
            "obd"
        ].to_bytes()

    assert found(1) == found(1) != found(2)


@pytest.mark.parametrize("hessian", ("exact-gn", "exact"))
@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
def test_memory_changes_no_number(hessian: str, make: Callable[..., object]) -> None:
    case = make()
    found = []
    for memory in (1, 20_000, 2**31):
        options = {"method_args": {"hessian": hessian}, "memory": memory}
        found.append(
            score(case.model, case.structure, [case.batch(7)], cross_entropy, ["taylor-so"], **options)[
                "taylor-so"
            ].by_group
        )
    for group, values in found[-1].items():
        for other in found[:-1]:
            torch.testing.assert_close(other[group], values, rtol=1e-9, atol=1e-18)


def test_parameters_are_no_part_of_what_a_sample_takes() -> None:
    model = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 3)).eval()
    where = of(model, torch.randn(6, 1000))
    with looking(where, bent) as look:
        gauss_newton(look, only_if_exact=True)
        assert look.conditions.known["bytes per sample"] < 100_000


def test_average_before_and_after_squaring_by_hand() -> None:
    """E_t = (sum of gates - 1)^2 scaled by the micro-batch: dE and d2E are known."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    model = Sum().double().eval()
    with torch.no_grad():
        model.one.weight.copy_(torch.tensor([[1.0], [2.0]]))
        model.two.weight.fill_(1)
    inputs = torch.tensor([[1.0], [1.0], [-1.0]], dtype=torch.float64)
    where = of(model, inputs)

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return (output.squeeze(1) - targets).square().mean()

    # y = 3x. Micro-batch 1: x = 1, target 1: without unit 0 the error goes from 4 to 1, without unit 1 to 0.
    # Micro-batch 2: x = -1, target 0: from 9 to 4 and to 1.
    targets = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    options = {"micro_batch": 2}
    for average, expected in (
        ("after", [((-3) ** 2 + (-5) ** 2) / 2, ((-4) ** 2 + (-8) ** 2) / 2]),
        ("before", [((2 * -3 - 5) / 3) ** 2, ((2 * -4 - 8) / 3) ** 2]),
    ):
        found = score(
            model, where.structure, [((inputs,), targets)], loss, ["taylor-so", "oracle"],
            method_args={"average": average}, **options,
        )  # fmt: skip
        torch.testing.assert_close(found["taylor-so"].by_group["one"], torch.tensor(expected).double())
        if average == "before":
            torch.testing.assert_close(
                found["oracle"].by_group["one"], torch.tensor(expected, dtype=torch.float64)
            )


def test_signs_of_obd_are_squared_where_it_is_compared() -> None:
    case = conv_norm()
    options = {"score_bn": ScoreBN.TRAIN}
    found = score(
        case.model, case.structure, [case.batch(12)], cross_entropy, ["obd", "magnitude"], **options
    )
    assert any((values < 0).any() for values in found["obd"].by_group.values())
    turned = copy.copy(found["obd"])
    object.__setattr__(turned, "by_group", {name: -values for name, values in turned.by_group.items()})
    assert agreement(found["obd"], found["magnitude"]) == agreement(turned, found["magnitude"])


@EVERY_HESSIAN
def test_a_loss_that_bends_in_no_gate_has_no_curvature(hessian: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double().eval()
    where = of(model, torch.randn(6, 4, dtype=torch.float64))
    found = score(
        model, where.structure, [where.batch], lambda output, _: output.mean(), ["obd"],
        method_args={"hessian": hessian},
    )["obd"]  # fmt: skip
    assert found.by_group["0"].tolist() == [0] * 5


@EVERY_HESSIAN
def test_outputs_without_a_gradient_are_an_error(hessian: str) -> None:
    where = setting(BY_NAME["ArgmaxOutput"])
    with pytest.raises(ScoreError, match="the loss does not depend on a gate"):
        score(
            where.model, where.structure, [where.batch], lambda output, _: output.double().mean(), ["obd"],
            method_args={"hessian": hessian},
        )  # fmt: skip


def test_gauss_newton_names_what_it_cannot_take() -> None:
    where = setting(BY_NAME["DictOutput"])
    with (
        looking(where) as look,
        pytest.raises(ScoreError, match="takes a tensor of at most 4096 out"),
    ):
        look.curvatures(Hessian.EXACT_GN, 1)


def weighted(output: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(output, targets.long(), weight=torch.tensor([0.5, 2.0, 1.0]))


def positive(output: Tensor, targets: Tensor) -> Tensor:
    weight = torch.tensor([0.5, 2.0, 1.0])
    aims = targets[:, None].to(weight.dtype).expand(-1, 3)
    return nn.BCEWithLogitsLoss(pos_weight=weight)(output, aims)


@pytest.mark.parametrize("loss", (weighted, positive))
def test_constants_of_a_loss_may_be_in_float32(loss: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    inputs, targets = torch.randn(8, 4), torch.randint(0, 2, (8,))
    where = of(model, inputs)
    found = {
        hessian: score(
            model, where.structure, [((inputs,), targets)], loss, ["obd"], method_args={"hessian": hessian}
        )["obd"].by_group["0"]
        for hessian in ("exact-gn", "exact")
    }
    torch.testing.assert_close(found["exact-gn"], found["exact"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ("taylor-so", "obd"))
def test_progress_is_told(method: str) -> None:
    case, told = mlp(), []
    score(
        case.model, case.structure, [case.batch()], cross_entropy, [method],
        progress=lambda *each: told.append(each),
    )  # fmt: skip
    assert ("curvature", 2, 2) in told  # three classes bend the loss in two directions
