"""`activation-density`: what is counted, what follows from it, and what a run of it comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunecli.budget import Budget
from prunecli.budget.limits import Limit
from prunecli.data import Batch
from prunecli.errors import ScoreError, UsageError
from prunecli.graph.cutting import cut
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Group
from prunecli.history import to_lines
from prunecli.model import build_model
from prunecli.peers import Peers
from prunecli.plan import Constraints
from prunecli.recipe import Recipe
from prunecli.spec import read_spec
from prunecli.training import Interrupted, Training, Wishes, train
from prunecli.training.activation_density import ByDensity, Counting, Delta
from prunecli.training.complexity import Cost, chain_cost, cost_of, main_path, training_complexity
from prunecli.training.density import Counts, counting
from prunecli.training.generations import has_settled, slope_of
from prunecli.training.sizing import new_width
from tests.training.small_runs import Mlp, Plan, Residual, Walker, assert_same, make, samples_of, structure_of

SAMPLES = Path(__file__).parents[2] / "sample_models"
NAME = "activation-density"
FAST = Recipe(epochs=3, lr=0.05)


class Rectified(nn.Module):
    """A stem whose units meet others in a concatenation, a shared ReLU, one in place, one never used."""

    shape = (2, 4, 4)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.joined = nn.ReLU()
        self.third = nn.Sequential(nn.Conv2d(11, 7, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.ReLU())
        self.unused = nn.ReLU()
        self.head = nn.Linear(7, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x = self.joined(torch.cat((x, self.second(x)), 1))
        return self.head(self.third(x).mean((2, 3)))


def fresh(net: Callable[..., nn.Module], dropout: float = 0.0) -> Callable[[int], nn.Module]:
    return lambda seed: make(net, dropout, seed)


def fixed(net: Any) -> Callable[[int | None], Iterator[Batch]]:
    samples = samples_of(net.shape)

    def sample(number: int | None) -> Iterator[Batch]:
        for start in range(0, number or len(samples), 5):
            (inputs,), targets = samples.batch(range(start, min(start + 5, number or len(samples))))
            yield (inputs.double(),), targets

    return sample


def plan(net: Any = Residual, recipe: Recipe = FAST, dropout: float = 0.0, **arguments: object) -> Plan:
    """Return a run that cuts after every second epoch, whatever the densities are."""
    quick = {"rho": 1.0, "least": 2, "delta": Delta.RISING, "tolerance": 1.0, "generations": 2}
    wishes = Wishes(fresh=fresh(net, dropout), sample=fixed(net))
    return Plan(net, recipe, NAME, {**quick, **arguments}, wishes, dropout)


def finished(what: Plan) -> tuple[Training, ByDensity]:
    training, schedule, course = what.start()
    schedule.check(training)
    train(training, schedule, course, Walker())
    assert isinstance(schedule, ByDensity)
    return training, schedule


def test_counts_are_those_of_hooks_on_every_relu() -> None:
    model = make(Rectified, 0.4).train()
    structure = structure_of(model)
    seen: dict[str, list[Tensor]] = {name: [] for name in ("first.0", "second", "third.0")}

    def keep(*parts: tuple[str, slice]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            for name, channels in parts:
                seen[name].append(output[:, channels].clone())

        return hook

    everything = slice(None)
    for relu, parts in (
        (model.first[2], [("first.0", everything)]),
        (model.joined, [("first.0", slice(0, 6)), ("second", slice(6, None))]),
        (model.third[1], [("third.0", everything)]),
        (model.third[3], [("third.0", everything)]),
    ):
        relu.register_forward_hook(keep(*parts))
    counts = Counts()
    generator = torch.Generator().manual_seed(1)
    for size in (4, 3):
        with counting(model, structure, seen, counts):
            model(torch.randn(size, 2, 4, 4, generator=generator, dtype=torch.float64))
    for name, outputs in seen.items():
        assert counts.of(name) == (
            sum(int((each != 0).sum()) for each in outputs),
            sum(map(Tensor.numel, outputs)),
        )
    whole = [each.flatten() for outputs in seen.values() for each in outputs]
    assert counts.pooled == pytest.approx(float((torch.cat(whole) > 0).double().mean()))
    shares = [
        float((torch.cat([each.flatten() for each in one]) > 0).double().mean()) for one in seen.values()
    ]
    assert counts.mean == pytest.approx(sum(shares) / 3)
    assert Counts.from_plain(counts.plain()).plain() == counts.plain()


def test_counting_changes_nothing_and_leaves_no_hook_behind() -> None:
    model = make(Residual)
    structure = structure_of(model)
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = model(images)
    model.train(False)
    model.train()
    with counting(model, structure, structure.by_name, Counts()):
        assert torch.equal(model(images), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_forward_that_takes_another_path_is_refused_by_name() -> None:
    model = make(Rectified)
    structure = structure_of(model)
    model.first[0] = nn.Conv2d(2, 7, 3, padding=1).double()
    model.first[1] = nn.BatchNorm2d(7).double()
    images = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    with counting(model, structure, ("first.0",), Counts()), pytest.raises(ScoreError, match="first.0"):
        model(images)


def test_the_worked_example() -> None:
    counts = Counts()
    outputs = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    counts.add("conv", torch.count_nonzero(outputs > 0), outputs.numel())
    assert counts.density("conv") == 2 / 6
    any_width = Limit((3, 2, 1), settled=False)
    assert new_width(counts, Group("conv", 3, ()), any_width) == 1
    assert new_width(Counts({"conv": torch.tensor(6)}, {"conv": 6}), Group("conv", 3, ()), any_width) == 3
    assert new_width(Counts({"conv": torch.tensor(0)}, {"conv": 6}), Group("conv", 3, ()), any_width) == 1
    assert new_width(Counts({"conv": torch.tensor(1)}, {"conv": 2}), Group("conv", 3, ()), any_width) == 2


@pytest.mark.parametrize(
    ("curve", "falls", "rises"),
    (
        ([0.6 - 0.05 * epoch for epoch in range(6)], True, False),
        ([0.6, 0.45, 0.38, 0.35, 0.34, 0.3395], True, False),
        ([0.4, 0.40005, 0.39995, 0.4, 0.40002], False, False),
        ([0.4, 0.41, 0.43, 0.44, 0.44], False, True),
    ),
    ids=("falling", "falling and settled", "flat", "rising"),
)
def test_delta_on_made_up_curves(curve: list[float], falls: bool, rises: bool) -> None:
    slope = slope_of(curve)
    assert slope == pytest.approx(np.polyfit(range(len(curve)), curve, 1)[0])
    assert ByDensity()._has_enough(slope) is not falls
    assert ByDensity(delta=Delta.RISING)._has_enough(slope) is rises


def test_rho_on_made_up_curves() -> None:
    falling = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    settling = [0.6, 0.5, 0.45, 0.4505, 0.4501, 0.44]
    assert not any(has_settled(falling[:end], 0.001, 1, 2) for end in range(1, 7))
    assert [has_settled(settling[:end], 0.001, 1, 2) for end in range(1, 7)] == [False] * 3 + [True] * 2 + [
        False
    ]
    assert [has_settled(settling[:end], 0.001, 2, 2) for end in range(1, 7)] == [False] * 4 + [True, False]
    assert [has_settled(settling[:end], 0.001, 1, 5) for end in range(1, 7)] == [False] * 4 + [True, False]
    assert not has_settled([0.5], 0.001, 1, 1)


RESNET18 = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
RESNET18_SIDES = [32] * 5 + [16] * 4 + [8] * 4 + [4] * 4
VGG19 = [64, 64, 128, 128, *[256] * 4, *[512] * 8]
VGG19_SIDES = [32, 32, 16, 16, *[8] * 4, *[4] * 4, *[2] * 4]
BASES = {"resnet18": (RESNET18, RESNET18_SIDES), "vgg19": (VGG19, VGG19_SIDES)}


@pytest.mark.parametrize(
    ("base", "widths", "params", "ops"),
    (
        ("resnet18", RESNET18, 1, 1),
        ("vgg19", VGG19, 1, 1),
        ("resnet18", [34, 29, 41, 25, 33, 58, 78, 27, 65, 71, 83, 46, 69, 120, 191, 219, 288], 7.3, 6.0),
        ("resnet18", [21, 16, 30, 10, 22, 24, 47, 9, 39, 26, 48, 12, 39, 41, 85, 63, 188], 41.5, 23.3),
        ("resnet18", [14, 9, 21, 5, 15, 13, 32, 5, 26, 13, 34, 5, 25, 21, 45, 12, 142], 196, 67.1),
        ("vgg19", [18, 23, 47, 25, 54, 51, 62, 61, 197, 258, 378, 322, 402, 383, 259, 134], 3.1, 5.6),
        ("vgg19", [10, 9, 30, 11, 21, 31, 22, 21, 62, 70, 113, 141, 256, 299, 194, 71], 10.3, 27.4),
        ("vgg19", [34, 23, 51, 30, 63, 63, 73, 82, 210, 285, 333, 357, 317, 259, 181, 106], 3.9, 5.3),
        ("resnet18", [39, 31, 49, 24, 44, 54, 90, 36, 84, 88, 155, 65, 136, 130, 231, 105, 300], 7.5, 4.7),
        ("resnet18", [31, 21, 47, 27, 48, 62, 99, 58, 94, 85, 161, 69, 133, 93, 152, 56, 247], 10.6, 4.7),
    ),
)
def test_the_papers_widths(base: str, widths: list[int], params: float, ops: float) -> None:
    dense, sides = BASES[base]
    found = chain_cost(widths, sides).times_smaller(chain_cost(dense, sides))
    assert round(found.params, 1 if params < 100 else None) == params
    assert round(found.macs, 1) == ops


@pytest.mark.parametrize(
    ("nets", "expected"),
    (
        ([(100, 1), (210, 6.0)], 135.0),
        ([(100, 1), (70, 6.0), (210, 23.2)], 120.7),
        ([(25, 1), (210, 5.1)], 66.2),
        ([(25, 1), (60, 4.7)], 37.8),
        ([(25, 1), (210, 5.3)], 64.6),
        ([(100, 1), (70, 5.6), (210, 27.4)], 120.2),
    ),
)
def test_the_papers_complexities(nets: list[tuple[int, float]], expected: float) -> None:
    assert round(training_complexity(nets), 1) == expected


def test_the_main_path_of_a_real_network_is_the_papers_count() -> None:
    """With widths of the paper's, block by block: what is counted on the structure is what the list says."""
    model = build_model(read_spec(str(SAMPLES / "projected_resnet" / "model.toml")))
    structure = find_groups(model, (torch.zeros(1, 3, 32, 32),))
    widths = dict(
        zip(
            [group.name for group in structure.groups],
            [21, 16, 30, 10, 22, 24, 47, 9, 39, 26, 48, 12, 39, 41, 85, 63, 188],
            strict=True,
        )
    )
    kept = {name: np.arange(structure.by_name[name].width) < width for name, width in widths.items()}
    main = main_path(structure)
    assert cost_of(main, {}) == chain_cost(RESNET18, RESNET18_SIDES)
    assert cost_of(main, kept) == chain_cost(list(widths.values()), RESNET18_SIDES)
    assert cost_of(structure, {}).params > cost_of(main, {}).params


def test_a_bottleneck_is_on_the_main_path_and_its_shortcut_is_not() -> None:
    model = build_model(read_spec("torchvision:resnet50", input=("3x32x32",)))
    structure = find_groups(model, (torch.zeros(1, 3, 32, 32),))
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    shortcuts = {name for name in convs if name.endswith("downsample.0")}
    assert len(shortcuts) == 4
    expected = sum(convs[name].weight.numel() for name in convs if name not in shortcuts)
    assert cost_of(main_path(structure), {}).params == expected


def test_widths_follow_the_densities_of_the_last_epoch_and_figures_tell_them() -> None:
    training, schedule = finished(plan(generations=1))
    first, final = schedule.done
    assert [first.name, final.name] == ["generation 0", "final"]
    assert [first.epochs, final.epochs] == [2, 3]
    assert training.structure is not None
    for group in training.structure.groups:
        density = training.history[1].density[group.name]
        assert first.density[group.name] == density
        assert final.widths[group.name] == max(1, int(density * group.width + 0.5))
        assert int(training.kept[group.name].sum()) == final.widths[group.name]
    assert training.history[1].total_density == first.total_density
    assert [row.phase for row in training.history] == ["generation 0"] * 2 + ["final"] * 3
    assert [row.rate for row in training.history[:2]] == [0.05, 0.05]
    assert training.history[-1].rate < 0.05
    figures = schedule.facts(training)
    dense = cost_of(training.structure, {})
    ops = dense.macs / final.cost.macs
    assert figures["macs_reduction"] == pytest.approx(ops)
    assert figures["training_complexity"] == pytest.approx(2 + 3 / ops)
    assert figures["training_memory_complexity"] == pytest.approx(2 + 3 * final.cost.params / dense.params)
    assert figures["training_complexity_share"] == pytest.approx((2 + 3 / ops) / 3)
    assert figures["generations"][1]["widths"] == final.widths
    assert final.cost == Cost(training.now.parameter_count({}), training.now.macs({}))


def test_samples_are_counted_by_the_statistics_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several processes has its own, of what it trained on."""
    spread: list[list[int]] = []
    monkeypatch.setattr(Peers, "spread", lambda self, tensors: spread.append([id(each) for each in tensors]))
    training, schedule, _ = plan(count=Counting.EVAL).start()
    assert isinstance(schedule, ByDensity)
    schedule._count_on_samples(training)
    assert spread == [[id(each) for each in training.model.buffers()]]


def test_the_paper_multiplies_by_the_current_width() -> None:
    _, schedule = finished(plan(generations=3))
    for before, after in zip(schedule.done, schedule.done[1:]):  # noqa: B905 - the last has no successor
        for name, width in before.widths.items():
            assert after.widths[name] == max(1, int(before.density[name] * width + 0.5))
    assert [each.number for each in schedule.done] == [0, 1, 2, 3]


def test_a_new_net_has_the_parameters_that_its_own_code_makes() -> None:
    made: list[int] = []

    def building(seed: int) -> nn.Module:
        made.append(seed)
        return make(Residual, 0.0, seed)

    run = plan(generations=1)
    run = replace(run, wishes=replace(run.wishes, fresh=building), recipe=replace(FAST, lr=0.0))
    training, _ = finished(run)
    assert len(made) == 1
    expected = cut(make(Residual, 0.0, made[0]), training.structure, training.kept)
    parameters = dict(training.model.named_parameters())
    assert all(torch.equal(parameters[name], each) for name, each in expected.named_parameters())
    assert not torch.equal(make(Residual).head.weight[:, :1], make(Residual, 0.0, made[0]).head.weight[:, :1])


@pytest.mark.parametrize("select", ("random", "l1"))
def test_a_net_that_keeps_its_parameters_is_the_one_before_it_sliced(select: str) -> None:
    run = plan(init="keep", select=select, generations=1)
    training, schedule, course = run.start()
    walker = Walker(stop_at=2 * course.stream.batch_count)
    with pytest.raises(Interrupted):
        train(training, schedule, course, walker)
    before, _, _ = run.start()
    plain = replace(
        run, schedule="none", arguments={}, recipe=replace(FAST, epochs=2, lr_schedule="constant")
    )
    whole = plain.run()
    assert before.structure is not None
    assert_same(training.model, cut(whole.model, before.structure, training.kept))
    if select == "l1":
        weights = whole.model.inner.weight.detach().abs().sum((1, 2, 3))
        deep = whole.model.deep.weight.detach().abs().sum((1, 2, 3))
        stays = training.kept["inner"]
        assert (weights + deep)[stays].min() >= (weights + deep)[~stays].max()


def test_the_lot_is_seeded() -> None:
    def kept(seed: int) -> dict[str, list[bool]]:
        run = plan(init="keep", generations=1)
        training, _ = finished(replace(run, wishes=replace(run.wishes, seed=seed), seed=0))
        return {name: stays.tolist() for name, stays in training.kept.items()}

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_a_net_whose_density_does_not_fall_is_final_and_trained_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ByDensity, "_has_enough", lambda self, slope: self.number == 1)
    training, schedule = finished(plan(generations=3))
    assert [each.name for each in schedule.done] == ["generation 0", "generation 1", "final"]
    assert schedule.done[2].widths == schedule.done[0].widths  # delta=rising: back to the one before
    assert schedule.facts(training)["final_generation"] == 0
    training, schedule = finished(plan(generations=3, delta="flat-or-rising"))
    assert schedule.done[2].widths == schedule.done[1].widths
    assert schedule.facts(training)["final_generation"] == 1
    assert any("this net is the final one" in note for row in training.history for note in row.notes)


def test_going_back_gives_the_parameters_of_the_net_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByDensity, "_has_enough", lambda self, slope: self.number == 1)
    recipe = replace(FAST, ema=0.8)
    run = plan(init="keep", generations=3, recipe=recipe)
    training, schedule, course = run.start()
    with pytest.raises(Interrupted):
        train(training, schedule, course, Walker(stop_at=4 * course.stream.batch_count))
    plain = replace(
        run, schedule="none", arguments={}, recipe=replace(recipe, epochs=2, lr_schedule="constant")
    )
    assert_same(training.model, plain.run().model)
    assert_same(training.judged, plain.run().model)


RUNS = {
    "reinit": plan(dropout=0.3),
    "keep": plan(init="keep", dropout=0.3, recipe=replace(FAST, ema=0.8)),
    "keep, l1, adamw": plan(init="keep", select="l1", recipe=replace(FAST, optimizer="adamw", warmup=0.5)),
    "eval": plan(count="eval", samples=11, dropout=0.3),
    "mean, accumulate": plan(total="mean", recipe=replace(FAST, accumulate=2)),
    "concatenation": plan(Rectified, dropout=0.3),
    "linear": plan(Mlp, layers="all", dropout=0.3),
    "recipe's rate": plan(rate="recipe", most=3, rho=0.0),
}


@pytest.mark.parametrize(
    ("name", "goes_back"), (*((name, False) for name in RUNS), ("reinit", True), ("keep", True))
)
def test_stopped_anywhere_it_ends_the_same(
    name: str, goes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if goes_back:
        monkeypatch.setattr(ByDensity, "_has_enough", lambda self, slope: self.number == 1)
    run = replace(RUNS[name], batch=7, count=14)
    run = replace(run, arguments={**run.arguments, "final": 1})
    whole, directed = finished(run)
    for after in count():
        kept = run.stop(after)
        if kept is None:
            break
        again, schedule = run.resume(kept)
        assert_same(again.model, whole.model)
        assert_same(again.judged, whole.judged)
        assert to_lines(again.history) == to_lines(whole.history), after  # the order of layers, too
        assert again.place == whole.place
        assert json.dumps(schedule.facts(again)) == json.dumps(directed.facts(whole))
        assert list(again.kept) == list(whole.kept)
    assert after == whole.place.step


def test_limits_are_respected() -> None:
    constraints = Constraints(min_keep=5, round_to=2, ignore=("stem",))
    run = plan(generations=2)
    training, schedule = finished(replace(run, wishes=replace(run.wishes, constraints=constraints)))
    assert training.kept["stem"].all()
    assert "stem" not in training.history[0].density
    assert schedule.done[-1].widths["inner"] == 6
    run = replace(run, wishes=replace(run.wishes, constraints=Constraints(keep_layer={"inner": 3})))
    assert finished(run)[1].done[-1].widths["inner"] == 3


class Smooth(nn.Sequential):
    """A convolution with a ReLU, and one without."""

    shape = (2, 4, 4)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(96, 3)
        )


def test_layers_without_a_relu_stay_whole_and_are_named() -> None:
    training, schedule = finished(plan(Smooth, generations=1))
    assert schedule.done[-1].widths["2"] == 6
    assert training.history[0].density.keys() == {"0"}
    assert "no ReLU behind, so kept whole: 2" in training.history[0].notes


def test_nothing_left_to_cut_ends_it() -> None:
    training, schedule = finished(plan(Rectified, generations=9))
    assert schedule.done[-1].name == "final"
    assert min(min(each.widths.values()) for each in schedule.done) >= 1
    assert any("nothing is left to cut" in note for row in training.history for note in row.notes)


@pytest.mark.parametrize(
    ("arguments", "wishes", "match"),
    (
        ({}, {"budget": Budget.parse("units=0.5")}, "finds widths by itself"),
        ({"select": "l1"}, {}, "`init=reinit` throws them away"),
        ({"samples": 5}, {}, "`samples` is for `count=eval`"),
        ({}, {"fresh": None}, "build the model anew"),
        ({"count": "eval"}, {"sample": None}, "there are none"),
        ({"least": 1}, {}, "`least` of `activation-density` is 1; at least 2"),
        ({"least": 4}, {}, r"`most` of `activation-density` is 3 \(`--epochs`\); at least 4"),
        ({"generations": 0}, {}, "`generations` of `activation-density` is 0"),
        ({}, {"constraints": Constraints(ignore=("*",))}, "no density to size layers by"),
    ),
)
def test_what_contradicts_itself_is_refused(
    arguments: dict[str, object], wishes: dict[str, object], match: str
) -> None:
    run = plan(**arguments)  # type: ignore[arg-type]
    training, schedule, _ = replace(run, wishes=replace(run.wishes, **wishes)).start()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=match):
        schedule.check(training)


def test_a_perceptron_needs_to_be_asked_for() -> None:
    training, schedule, _ = plan(Mlp).start()
    with pytest.raises(UsageError, match="layers=all"):
        schedule.check(training)
