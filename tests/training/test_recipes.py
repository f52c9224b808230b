"""What a recipe says is what happens: rates, decay, averages, smoothing, mixtures, precision, stopping."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.data import Evaluation
from prunecli.errors import DataError
from prunecli.recipe import RateName, Recipe
from prunecli.training import train
from prunecli.training.optimising import make_optimising
from tests.training.small_runs import Mlp, Plan, Residual, Walker, make, tensors_of

FAST = Recipe(epochs=3, lr=0.05)


def rates(recipe: Recipe, epochs: int, steps: int, kind: RateName | None = None) -> list[float]:
    """Return the rate of each step of a phase."""
    made = make_optimising(make(Mlp), recipe, epochs, steps, kind)
    found = []
    for _ in range(epochs * steps):
        found.append(made.rate_now)
        made.optimizer.step()
        made.rate.step()
    return found


def test_a_cosine_falls_to_zero() -> None:
    expected = [0.1 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert rates(Recipe(lr=0.1), 4, 5) == pytest.approx(expected, abs=1e-12)


def test_steps_and_constants() -> None:
    recipe = Recipe(lr=0.1, lr_step=2, lr_gamma=0.5)
    assert rates(recipe, 5, 3, "step") == pytest.approx([0.1 * 0.5 ** (step // 6) for step in range(15)])
    assert rates(recipe, 5, 3, "constant") == [0.1] * 15


def test_one_cycle_is_that_of_torch() -> None:
    found = rates(Recipe(lr=0.1, lr_schedule="onecycle"), 4, 5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=False)
    for rate in found:
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        cycle.step()
    assert max(found) == pytest.approx(0.1)


def test_a_warm_up_rises_in_a_line_and_the_rest_follows() -> None:
    found = rates(Recipe(lr=0.1, warmup=1.5), 4, 4)
    assert found[:6] == pytest.approx([0.1 * (1e-3 + (1 - 1e-3) * step / 6) for step in range(6)])
    rest = [0.1 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert found[6:] == pytest.approx(rest, abs=1e-12)


def test_a_warm_up_longer_than_the_phase_leaves_a_step() -> None:
    assert len(rates(Recipe(lr=0.1, warmup=9), 2, 3)) == 6
    assert len(rates(Recipe(lr=0.1, warmup=9), 0, 3)) == 0


def first_step(recipe: Recipe, net: Any = Residual) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """Return the model after its first step, its tensors before it, and the gradients."""
    training, schedule, course = Plan(net, recipe, batch=10).start()
    before, gradients = tensors_of(training.model), {}

    def look(*_: Any) -> None:
        gradients.update(
            {n: p.grad.clone() for n, p in training.model.named_parameters() if p.grad is not None}
        )

    schedule.before_step = look  # type: ignore[method-assign]

    class One(Walker):
        def tick(self, tick: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training, schedule, course, One())
    return training.model, before, gradients


@pytest.mark.parametrize("decay_all", (False, True))
def test_decay_spares_norms_and_biases(decay_all: bool) -> None:
    recipe = replace(FAST, momentum=0.0, weight_decay=0.1, decay_all=decay_all)
    model, before, gradients = first_step(recipe)
    for name, parameter in model.named_parameters():
        decay = 0.1 if decay_all or parameter.ndim > 1 else 0.0
        expected = before[name] - 0.05 * (gradients[name] + decay * before[name])
        assert torch.allclose(parameter, expected, atol=1e-14, rtol=0), name


def test_gradients_are_clipped_by_their_norm() -> None:
    model, before, gradients = first_step(replace(FAST, momentum=0.0, weight_decay=0.0, clip=0.01))
    norm = torch.stack([each.square().sum() for each in gradients.values()]).sum().sqrt()
    assert norm > 0.01
    for name, parameter in model.named_parameters():
        expected = before[name] - 0.05 * gradients[name] * 0.01 / norm
        assert torch.allclose(parameter, expected, atol=1e-8, rtol=0), name


def test_accumulated_minibatches_make_the_step_of_one_large_one() -> None:
    """Also the last ones of an epoch, of which there are fewer."""
    recipe = replace(FAST, epochs=2, momentum=0.0, weight_decay=0.0)
    small = Plan(recipe=replace(recipe, accumulate=3), batch=4, count=20).run()  # 3 + 2 minibatches
    stream, model = Plan(batch=4, count=20).start()[2].stream, make(Mlp)
    rate = make_optimising(model, recipe, 2, 2)
    for epoch in range(2):
        batches = list(stream.epoch(epoch))
        for group in (batches[:3], batches[3:]):
            inputs = torch.cat([inputs for (inputs,), _ in group]).double()  # type: ignore[misc]
            cross_entropy(model(inputs), torch.cat([targets for _, targets in group])).backward()
            rate.optimizer.step()
            rate.optimizer.zero_grad()
            rate.rate.step()
    for name, tensor in tensors_of(model).items():
        assert torch.allclose(tensor, tensors_of(small.model)[name], atol=1e-13, rtol=0), name


def test_the_average_is_an_average() -> None:
    training, schedule, course = Plan(Residual, replace(FAST, ema=0.8)).start()
    expected: dict[str, Tensor] = {}

    class Averaging(Walker):
        def tick(self, tick: Any) -> None:
            now = tensors_of(training.model)
            parameters = dict(training.model.named_parameters())
            for name, tensor in now.items():
                old = expected.get(name)
                is_mean = old is not None and name in parameters
                expected[name] = 0.8 * old + 0.2 * tensor if is_mean else tensor  # type: ignore[operator]

    train(training, schedule, course, Averaging())
    assert training.judged is not training.model
    for name, tensor in tensors_of(training.judged).items():
        assert torch.allclose(tensor.double(), expected[name].double(), atol=1e-12, rtol=0), name


def test_smoothed_labels() -> None:
    recipe = replace(FAST, epochs=1, lr=0.0, label_smoothing=0.2)
    training = Plan(recipe=recipe).run()
    model, losses = make(Mlp), []
    for (inputs,), targets in Plan().start()[2].stream.epoch(0):
        logs = model(inputs.double()).log_softmax(1)  # type: ignore[union-attr]
        wanted = torch.full_like(logs, 0.2 / 3)
        wanted[torch.arange(len(targets)), targets] += 0.8
        losses.append(-(wanted * logs).sum(1).mean().item())
    assert training.history[0].loss == pytest.approx(sum(losses) / 5, abs=1e-12)


@pytest.mark.parametrize("augment", ("mixup=0.4", "cutmix=1", "mixup=1,cutmix=1"))
def test_mixtures_count_as_their_larger_part(augment: str) -> None:
    """A mixture's class is that of which it has most, so an answer that is right counts as right."""
    recipe = replace(FAST, epochs=2, lr=0.0, augment=augment)
    training, schedule, course = Plan(Residual, recipe).start()
    model = copy_of(training.model)
    hits = judged = 0

    class Twice(Walker):
        pass

    train(training, schedule, course, Twice())
    for epoch in range(2):
        for number, (inputs, targets) in enumerate(course.stream.epoch(epoch)):
            (mixed,), soft = course.stream.mix((inputs, targets), 3, epoch, number)  # type: ignore[misc]
            assert soft.shape == (len(targets), 3)
            assert torch.allclose(soft.sum(1), torch.ones(len(targets)))
            if epoch == 1:
                model.train()
                hits += int((model(mixed.double()).argmax(1) == soft.argmax(1)).sum())
                judged += len(targets)
    assert judged == 20
    assert training.history[1].top1 == pytest.approx(hits / judged)


def copy_of(model: nn.Module) -> nn.Module:
    """Return a model of the same tensors."""
    other = make(Residual)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_trains_parameters_that_stay_whole(dtype: torch.dtype) -> None:
    plan = Plan(Residual, replace(FAST, epochs=6), single=True, batch=10)
    exact, half = plan.run(), replace(plan, autocast=dtype).run()
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.history[-1].loss < half.history[0].loss
    assert half.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.1)
    assert half.history[0].loss != exact.history[0].loss


def test_a_gradient_that_overflows_moves_nothing_and_nobody_hears_of_it() -> None:
    plan = Plan(Residual, FAST, single=True, autocast=torch.float16)
    training, schedule, course = plan.start()  # whose first loss scale is far too large
    assert training.scaler.get_scale() > 1e8
    before = tensors_of(training.model)
    heard: list[int] = []
    schedule.after_step = lambda training, loss: heard.append(training.place.step)  # type: ignore[method-assign]

    class Looking(Walker):
        def tick(self, tick: Any) -> None:
            super().tick(tick)
            if not heard:
                for name, parameter in training.model.named_parameters():
                    assert torch.equal(parameter, before[name])

    train(training, schedule, course, Looking())
    assert heard
    assert heard[0] > 1
    assert training.scaler.get_scale() < 2**30


def test_channels_last_changes_nothing_but_the_layout() -> None:
    plan = Plan(Residual, FAST, single=True)
    usual, last = plan.run(), replace(plan, recipe=replace(FAST, channels_last=True)).run()
    assert last.model.inner.weight.is_contiguous(memory_format=torch.channels_last)
    for name, tensor in tensors_of(usual.model).items():
        assert torch.allclose(tensor.float(), tensors_of(last.model)[name].float(), atol=1e-4), name


def test_patience_ends_training() -> None:
    values = iter([0.5, 0.7, 0.6, 0.7, 0.65, 0.9])
    plan = Plan(recipe=replace(FAST, epochs=6, patience=3))
    training = plan.run(lambda model: Evaluation(1.0, next(values), None, 10))
    assert training.place.epoch == 5
    assert (training.place.best_epoch, training.place.best_value) == (2, 0.7)
    assert training.history[-1].notes == ("no better than epoch 2 for 3 epochs: stopped",)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    training, schedule, course = Plan(recipe=replace(FAST, lr=1e200)).start()
    with pytest.raises(DataError, match="Lower `--lr`"):
        train(training, schedule, course, Walker())
