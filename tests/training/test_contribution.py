"""Rank-based pruning while training, against the procedure written plainly with sliced weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from prunecli.budget import Budget
from prunecli.data import Evaluation
from prunecli.errors import BudgetError, NotPrunableError, ScoreError, UsageError
from prunecli.graph.groups import find_groups
from prunecli.history import EpochRow
from prunecli.importance.meter import Meter
from prunecli.importance.micro_batches import MicroBatch
from prunecli.pipeline.finetune import Finetuned, train_new
from prunecli.pipeline.presets import with_preset
from prunecli.pipeline.settings import Budget as BudgetSettings
from prunecli.pipeline.settings import Choices, Directed, Files, Machine, Samples, Source
from prunecli.plan import Constraints, Scope
from prunecli.recipe import Recipe
from prunecli.training import Schedule, Training, Wishes, train
from prunecli.training.contribution import ByContribution
from prunecli.training.narrowing import Narrowing, narrowed
from tests.training.small_runs import Grouped, Mlp, Plan, Residual, Walker, make, structure_of

SAMPLES = Path(__file__).parents[2] / "sample_models"
LAYER = Wishes(scope=Scope.LAYER)
RECIPE = Recipe(epochs=5, lr=0.05, lr_schedule="constant", weight_decay=0.0)
PLAN = Plan(Mlp, RECIPE, "contribution", {"warm": 2, "every": 1}, LAYER)


def mlp(*widths: int) -> nn.Module:
    """Return linear layers with ReLUs between them."""
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def narrowing(
    *widths: int, budget: str | None = None, percent: float = 10.0, constraints: Constraints | None = None
) -> Narrowing:
    """Return what leaves a network of linear layers that reads 4 values and puts out 3."""
    structure = find_groups(mlp(4, *widths, 3).eval(), (torch.zeros(2, 4),))
    return Narrowing(
        structure, constraints or Constraints(), Budget.parse(budget) if budget else None, percent, conv=False
    )


def finished(plan: Plan, judge: Any = lambda model: None) -> tuple[Training, ByContribution]:
    """Return a run at its end, and its schedule."""
    training, schedule, course = plan.start()
    schedule.check(training)
    train(training, schedule, course, Walker(judge=judge))
    assert isinstance(schedule, ByContribution)
    return training, schedule


def test_the_widths_of_the_paper() -> None:
    found = narrowing(50, 30)
    assert [tuple(found.after(cuts).values()) for cuts in range(10)] == [
        *((50, 30), (45, 27), (40, 24), (36, 21), (32, 18), (28, 16), (25, 14), (22, 12), (19, 10), (17, 9))
    ]
    assert 1 - sum(found.after(9).values()) / 80 == pytest.approx(0.675)
    found = narrowing(256, 128)
    assert tuple(found.after(5).values()) == (150, 73)
    assert 1 - sum(found.after(5).values()) / 384 == pytest.approx(0.419, abs=5e-4)


@pytest.mark.parametrize("percent", (10.0, 5.0, 33.3, 0.1, 99.0, 70.0))
def test_units_ranked_too_low_go(percent: float) -> None:
    """Counted one by one, with ranks from 1."""
    for width in range(1, 400):
        highest = max(Fraction(1), (1 - Fraction(str(percent)) / 100) * width)
        assert narrowed(width, percent) == sum(rank <= highest for rank in range(1, width + 1))


def test_constraints_delay_units_and_lose_none() -> None:
    rounded = narrowing(20, 12, constraints=Constraints(round_to=4))
    plain = narrowing(20, 12)
    assert [tuple(rounded.after(cuts).values()) for cuts in range(6)] == [
        *((20, 12), (20, 12), (16, 12), (16, 8), (12, 8), (12, 8))
    ]
    for cuts in range(20):
        for name, width in rounded.after(cuts).items():
            assert width >= plain.after(cuts)[name] > width - 4 or width == 4
    least = narrowing(20, 12, constraints=Constraints(min_keep=0.5, keep_layer={"0": 15}))
    assert tuple(least.after(1).values()) == (18, 10)
    assert tuple(least.after(30).values()) == (15, 6)
    assert narrowing(20, 12, constraints=Constraints(ignore=("0",))).dense == {"2": 12}


@pytest.mark.parametrize(
    ("budget", "cuts"),
    (
        ("units=0.9", 1),
        ("keep=0.325", 9),
        ("units=33%", 9),
        ("units=26", 9),
        ("units=27", 9),
        ("units=29", 8),
    ),
)
def test_cuts_go_on_until_the_budget_is_met(budget: str, cuts: int) -> None:
    assert narrowing(50, 30, budget=budget).cuts_to_budget == cuts


def test_other_budgets_count_the_whole_network() -> None:
    for currency in ("macs", "params"):
        found = narrowing(50, 30, budget=f"{currency}=0.5")
        cuts = found.cuts_to_budget
        assert cuts is not None
        dense, before, after = (
            4 * a + a * b + b * 3 for a, b in (found.after(n).values() for n in (0, cuts - 1, cuts))
        )
        assert after <= dense / 2 < before
    assert narrowing(50, 30, budget="units=1").cuts_to_budget is None
    kept = narrowing(50, 30, budget="keep=0.5", constraints=Constraints(keep_layer={"0": 40}))
    assert kept.after(kept.cuts_to_budget or 0) == {"0": 40, "2": 14}


class Twin:
    """The loop of METHODS 7.2 for the MLP, with contributions written out."""

    def __init__(self, plan: Plan, warm: int, every: int, cuts: int) -> None:
        model = make(Mlp)
        self.weights = [model[i].weight.detach().clone() for i in (0, 3, 5)]  # type: ignore[index]
        self.biases = [model[i].bias.detach().clone() for i in (0, 3, 5)]  # type: ignore[index]
        self.units = [torch.arange(10), torch.arange(8)]
        self.losses: list[float] = []
        stream = plan.start()[2].stream
        epochs = iter(range(1000))
        for cut in range(cuts + 1):
            if cut:
                self._cut()
            parameters = [each.requires_grad_() for each in (*self.weights, *self.biases)]
            optimizer = torch.optim.SGD(parameters, lr=plan.recipe.lr, momentum=0.9, nesterov=True)
            self.seen: list[list[Tensor]] = [[], []]
            for _ in range(every if cut else warm):
                self._epoch(stream.epoch(next(epochs)), optimizer)

    def _epoch(self, batches: Iterator[Any], optimizer: torch.optim.Optimizer) -> None:
        total, count = 0.0, 0
        for (inputs,), targets in batches:
            x = inputs.double()
            for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                if layer:
                    x = relu(x)
                    self._contribute(layer - 1, x.detach(), weight.detach())
                x = x @ weight.T + bias
            loss = cross_entropy(x, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(targets), count + len(targets)
        self.losses.append(total / count)

    def _contribute(self, layer: int, activations: Tensor, weight: Tensor) -> None:
        """Keep rho_fjk = |w_jk a_fk| / sum over i of |w_ji a_fi|."""
        shares = (activations[:, None] * weight[None]).abs()
        sums = shares.sum(2, keepdim=True)
        self.seen[layer].append((shares / sums)[(sums > 1e-12).squeeze(2)])

    def _cut(self) -> None:
        for layer, seen in enumerate(self.seen):
            rho = torch.cat(seen)
            score = 0.5 * rho.mean(0) + 0.5 * rho.amax(0)
            width = len(score)
            ranks = {int(unit): rank for rank, unit in enumerate(score.argsort(descending=True), 1)}
            stays = [unit for unit in range(width) if ranks[unit] <= max(1, Fraction(9, 10) * width)]
            self.units[layer] = self.units[layer][stays]
            self.weights[layer] = self.weights[layer].detach()[stays]
            self.biases[layer] = self.biases[layer].detach()[stays]
            self.weights[layer + 1] = self.weights[layer + 1].detach()[:, stays]
        self.biases[2] = self.biases[2].detach()


def test_agrees_with_the_plain_loop() -> None:
    training, schedule = finished(PLAN)
    twin = Twin(PLAN, 2, 1, 3)
    assert [tuple(cut.widths.values()) for cut in schedule.cuts] == [(9, 7), (8, 6), (7, 5)]
    for name, units in zip(("0", "3"), twin.units, strict=True):
        assert np.flatnonzero(training.kept[name]).tolist() == units.tolist()
    for index, weight, bias in zip((0, 3, 5), twin.weights, twin.biases, strict=True):
        layer = training.model[index]  # type: ignore[index]
        torch.testing.assert_close(layer.weight, weight)
        torch.testing.assert_close(layer.bias, bias)
    assert [row.loss for row in training.history] == pytest.approx(twin.losses)


def test_the_epochs_of_the_paper() -> None:
    """30 epochs, then 15 after each cut, of 100: cuts before epochs 31, 46, 61, 76 and 91, and 105 run."""
    training, schedule = finished(replace(PLAN, recipe=replace(RECIPE, epochs=100), arguments={}, count=4))
    assert [cut.epoch for cut in schedule.cuts] == [30, 45, 60, 75, 90]
    assert training.place.epoch == 105
    assert [row.phase for row in training.history[::15]] == [
        "dense",
        "dense",
        *(f"recovery {n}" for n in range(1, 6)),
    ]
    assert {row.rate for row in training.history} == {0.05}


def test_it_ends_when_the_budget_is_met() -> None:
    plan = replace(
        PLAN, recipe=replace(RECIPE, epochs=30), wishes=replace(LAYER, budget=Budget.parse("units=0.67"))
    )
    training, schedule = finished(plan)
    assert [cut.units for cut in schedule.cuts] == [16, 14, 12]
    assert training.place.epoch == 5
    facts = schedule.facts(training)
    assert (facts["cuts"], facts["units_left_of_them"], facts["budget_met"]) == (3, 12, True)
    by_argument = replace(plan, arguments={**plan.arguments, "prune": 0.33}, wishes=LAYER)
    assert finished(by_argument)[1].cuts == schedule.cuts


def test_it_ends_when_nothing_is_left_to_cut() -> None:
    plan = replace(
        PLAN, recipe=replace(RECIPE, epochs=300), arguments={"warm": 1, "every": 1, "percent": 90.0}
    )
    training, schedule = finished(plan)
    assert [tuple(cut.widths.values()) for cut in schedule.cuts] == [(1, 1)]
    assert training.place.epoch == 2


class Optimizers(Walker):
    """Remembers which optimizer stands ready after each epoch, and how much it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[tuple[Any, int]] = []

    def epoch_over(self, training: Training, row: EpochRow) -> None:
        if training.optimising is not None:
            optimizer = training.optimising.optimizer
            held = {id(each) for group in optimizer.param_groups for each in group["params"]}
            assert held == {id(each) for each in training.model.parameters()}
            self.met.append((optimizer, len(optimizer.state)))


@pytest.mark.parametrize("optimizer", ("sgd", "adamw"))
def test_every_recovery_has_a_new_optimizer(optimizer: Any) -> None:
    training, schedule, course = replace(PLAN, recipe=replace(RECIPE, optimizer=optimizer)).start()
    schedule.check(training)
    walker = Optimizers()
    train(training, schedule, course, walker)
    known = [count for _, count in walker.met]
    assert known == [6, 0, 0, 0, 6]  # within the first phase, behind three cuts, and in the end
    assert len({id(optimizer) for optimizer, _ in walker.met}) == 4


def scored(training: Training, schedule: Schedule) -> dict[str, Tensor]:
    assert isinstance(schedule, ByContribution)
    assert schedule.meter is not None
    return schedule.meter.scores()


@pytest.mark.parametrize("method", ("contribution", "contribution-inverse", "random", "magnitude"))
def test_baselines_rank_in_their_own_way(method: str) -> None:
    """The first cut takes what the method says of the minibatches before it."""
    training, schedule, course = replace(PLAN, wishes=replace(LAYER, method=method)).start()
    schedule.check(training)
    scores: dict[str, Tensor] = {}

    class Watching(Walker):
        def tick(self, tick: object) -> None:
            super().tick(tick)  # type: ignore[arg-type]
            if len(self.ticks) == 10:
                scores.update(scored(training, schedule))
            if len(self.ticks) == 11:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training, schedule, course, Watching())
    assert set(scores) == {"0", "3"}
    for name, values in scores.items():
        gone = np.flatnonzero(~training.kept[name])
        assert gone.tolist() == [int(values.argmin())]


def test_the_inverse_is_the_other_end() -> None:
    def gone(method: str) -> dict[str, int]:
        plan = replace(PLAN, recipe=replace(RECIPE, epochs=3), wishes=replace(LAYER, method=method))
        return {name: int(np.flatnonzero(~stays)[0]) for name, stays in finished(plan)[0].kept.items()}

    ours, theirs = gone("contribution"), gone("contribution-inverse")
    assert all(ours[name] != theirs[name] for name in ours)


def test_chance_is_drawn_anew_at_each_cut_and_with_each_seed() -> None:
    def kept(seed: int) -> list[list[int]]:
        training, _ = finished(replace(PLAN, wishes=replace(LAYER, method="random", seed=seed)))
        return [np.flatnonzero(stays).tolist() for stays in training.kept.values()]

    assert kept(0) == kept(0)
    assert len({str(kept(seed)) for seed in range(4)}) == 4


def test_settings_of_the_method_are_passed_on() -> None:
    wishes = replace(LAYER, method_args={"average": "1", "maximum": "0", "window": "last-batch"})
    plain, last = finished(PLAN)[0], finished(replace(PLAN, wishes=wishes))[0]
    assert any(plain.kept[name].tolist() != last.kept[name].tolist() for name in plain.kept)


def test_each_cut_is_measured_before_and_after_recovery() -> None:
    judged: list[int] = []

    def judge(model: nn.Module) -> Evaluation:
        judged.append(model[0].out_features)  # type: ignore[index]
        return Evaluation(float(len(judged)), len(judged) / 100, None, 1)

    training, schedule = finished(PLAN, judge)
    assert judged == [10, 10, 9, 9, 8, 8, 7, 7]
    facts = schedule.facts(training)["by_cut"]
    assert isinstance(facts, list)
    assert [row["test_top1"] for row in facts] == [  # type: ignore[index,call-overload]
        {"before": before / 100, "cut": (before + 1) / 100, "recovered": (before + 2) / 100}
        for before in (2, 4, 6)
    ]
    assert [row["epoch"] for row in facts] == [2, 3, 4]  # type: ignore[index,call-overload]
    assert facts[-1]["train_top1"]["recovered"] == training.history[-1].top1  # type: ignore[index,call-overload]
    assert training.history[1].notes == ("cut 1: 18 -> 16 units (9-7), test top-1 3.00 % before recovery",)


def test_figures_are_the_same_after_a_resume() -> None:
    whole = finished(PLAN)[1]
    for after in (3, 10, 11, 17, 24):
        kept = PLAN.stop(after)
        assert kept is not None
        training, schedule = PLAN.resume(kept)
        assert isinstance(schedule, ByContribution)
        assert schedule.cuts == whole.cuts
        assert schedule.facts(training)["cuts"] == 3


def test_convolutions_stay_unless_asked_for() -> None:
    with pytest.raises(NotPrunableError, match="conv=true"):
        finished(replace(PLAN, net=Grouped))
    arguments = {**PLAN.arguments, "conv": True}
    training, schedule = finished(replace(PLAN, net=Residual, arguments=arguments))
    assert len(schedule.cuts[0].widths) == len(training.kept)
    assert all(not stays.all() for stays in training.kept.values())
    weights = replace(LAYER, method="magnitude")
    assert finished(replace(PLAN, net=Residual, arguments=arguments, wishes=weights))[1].cuts


class Mixed(nn.Sequential):
    """Convolutions, the last of which a linear layer reads, and neurons."""

    shape = (2, 4, 4)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )


def test_what_linear_layers_read_of_convolutions_stays() -> None:
    training, schedule = finished(replace(PLAN, net=Mixed))
    assert {name: int(stays.sum()) for name, stays in training.kept.items()} == {"0": 6, "2": 4, "5": 8}
    assert list(schedule.cuts[0].widths) == ["5"]


def test_a_meter_may_score_some_of_the_groups() -> None:
    model = make(Mixed)
    structure = structure_of(model)
    with pytest.raises(ScoreError, match="read by a convolution"):
        Meter(model, structure, "contribution", None)
    meter = Meter(model, structure, "contribution", None, groups={"5"})
    meter.observe(MicroBatch((torch.ones(3, *Mixed.shape).double(),), None, 3))
    assert {name: len(values) for name, values in meter.scores().items()} == {"5": 12}
    with pytest.raises(ScoreError, match="nothing to score"):
        Meter(model, structure, "contribution", None, groups=())


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"arguments": {"warm": 0}}, "at least 1 epoch"),
        ({"arguments": {"percent": 100.0}}, "`percent` is above 0"),
        ({"arguments": {"prune": 1.0}}, "`prune` is from 0"),
        (
            {"arguments": {"prune": 0.5}, "wishes": replace(LAYER, budget=Budget.parse("keep=0.5"))},
            "two budgets",
        ),
        ({"wishes": Wishes()}, "leave out `--scope global`"),
        (
            {"arguments": {}},
            r"5 epochs are too few: the first cut comes after epoch 30 .* Raise `--epochs` to 31",
        ),
        (
            {"wishes": replace(LAYER, budget=Budget.parse("units=0.5"))},
            r"needs 5 cuts, the first cut comes after epoch 2 \(`warm`\), the last after epoch 6 .* to 7",
        ),
        ({"wishes": replace(LAYER, budget=Budget.parse("units=1.0"))}, "meets the budget as it is"),
        (
            {"wishes": replace(LAYER, method="taylor-fo"), "recipe": replace(RECIPE, accumulate=2)},
            "--accumulate",
        ),
        ({"wishes": replace(LAYER, method_args={"avrage": "1"})}, "avrage"),
    ),
)
def test_what_cannot_be_done_is_refused_at_once(changes: Mapping[str, Any], message: str) -> None:
    training, schedule, _ = replace(PLAN, **changes).start()
    with pytest.raises(UsageError, match=message):
        schedule.check(training)


def test_a_budget_out_of_reach_is_refused_at_once() -> None:
    wishes = replace(LAYER, budget=Budget.parse("units=9"), constraints=Constraints(min_keep=5))
    training, schedule, _ = replace(PLAN, wishes=wishes).start()
    with pytest.raises(BudgetError, match="of layers of 10-8 units this schedule leaves 5-5"):
        schedule.check(training)


def test_the_presets_are_the_settings_of_the_paper_and_of_its_code() -> None:
    rank = with_preset(Choices(), "rank")
    assert rank.directed == Directed("contribution", ("warm=30", "every=15", "percent=10"))
    assert (rank.recipe.epochs, rank.recipe.lr, rank.recipe.momentum, rank.samples.batch_size) == (
        100,
        0.1,
        0.0,
        5000,
    )
    assert (rank.recipe.lr_schedule, rank.recipe.weight_decay, rank.budget.scope) == (
        "constant",
        0.0,
        "layer",
    )
    code = with_preset(Choices(directed=Directed("contribution", ("every=10",))), "rank-code")
    assert code.directed.schedule_arg == ("warm=30", "percent=10", "every=10")
    assert code.importance.method_arg == ("average=1", "maximum=0", "activation=pre", "window=last-batch")


def trained(
    folder: Path, source: Source, samples: Samples, recipe: Recipe, *arguments: str, **more: Any
) -> Finetuned:
    """Train under the schedule, with `arguments`."""
    choices = Choices(
        source=source,
        samples=samples,
        machine=Machine("cpu", threads=1),
        files=Files(str(folder / "net.safetensors"), onnx=False),
        recipe=recipe,
        directed=Directed("contribution", arguments),
        **more,
    )
    return train_new(choices)


def test_settings_are_filled_in_where_the_user_left_them_alone(tmp_path: Path) -> None:
    source = Source(spec=str(SAMPLES / "digits_mlp" / "model.toml"))
    found = trained(tmp_path, source, Samples(batch_size=512), Recipe(epochs=3), "warm=1", "every=1")
    training = found.report.training
    assert training is not None
    assert {row.rate for row in training.rows} == {0.01}
    assert found.report.settings["method"] == "contribution"
    assert found.report.settings["scope"] == "layer"
    with pytest.raises(UsageError, match="100 epochs are too few: the first cut comes after epoch 100"):
        trained(tmp_path / "other", source, Samples(batch_size=512), Recipe(), "warm=100")


VAE_ARGS = ("channels=1", "size=8", "convs=[2, 3]", "hidden=[20, 10]", "latent=4")
MAY_GO = {"encoder.5", "encoder.7", "decoder.0", "decoder.2"}


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Blobs of light, as a file without labels."""
    generator = np.random.default_rng(0)
    spots = generator.integers(1, 7, size=(64, 2))
    rows, columns = np.mgrid[:8, :8]
    images = [255 * (abs(rows - r) + abs(columns - c) <= 1) for r, c in spots]
    np.savez(tmp_path / "blobs.npz", images=np.array(images, dtype=np.uint8)[:, None])
    return f"npz:{tmp_path / 'blobs.npz'}"


def test_a_variational_autoencoder_keeps_its_code_and_its_maps(tmp_path: Path, pictures: str) -> None:
    source = Source(spec=str(SAMPLES / "vae" / "model.toml"), input=("1x8x8",), spec_arg=VAE_ARGS)
    samples = Samples(train_data=pictures, test_data=pictures, batch_size=16)
    recipe = Recipe(epochs=8, optimizer="adam", lr=1e-3, weight_decay=0.0)
    found = trained(tmp_path, source, samples, recipe, "warm=4", "every=2", "percent=20")
    training = found.report.training
    assert training is not None
    (first, *_, last) = training.rows
    assert last.loss < first.loss
    assert last.top1 is None
    assert last.test_loss is not None
    widths = [cut["widths"] for cut in training.figures["by_cut"]]
    assert [set(each) for each in widths] == [MAY_GO, MAY_GO]
    assert widths[1] == {"encoder.5": 12, "encoder.7": 6, "decoder.0": 6, "decoder.2": 12}
    model = found.model
    assert (model.mean.out_features, model.log_variance.out_features) == (4, 4)  # type: ignore[union-attr]
    assert model.decoder[4].out_features == 12 == model.encoder[5].in_features  # type: ignore[index]
    assert found.report.parity
    assert all(each.error <= each.bound for each in found.report.parity)


def test_patterns_leave_layers_alone(tmp_path: Path, pictures: str) -> None:
    source = Source(spec=str(SAMPLES / "vae" / "model.toml"), input=("1x8x8",), spec_arg=VAE_ARGS)
    samples = Samples(train_data=pictures, test_data=pictures, batch_size=16)
    budget = BudgetSettings(ignore=("decoder.*",), keep="0.85")
    found = trained(tmp_path, source, samples, Recipe(epochs=4), "warm=1", "every=1", budget=budget)
    assert found.report.training is not None
    (*_, last) = found.report.training.figures["by_cut"]
    assert last["widths"] == {"encoder.5": 16, "encoder.7": 8}
    assert set(last["test_top1"].values()) == {None}
    assert None not in last["test_loss"].values()
