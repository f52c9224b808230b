"""The steps of `i-spasp-train` against the algorithm as METHODS 6.2 has it, with H kept and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunecli.errors import UsageError
from prunecli.importance.sparse_columns import (
    Course,
    Learned,
    Reader,
    Start,
    Step,
    Truncate,
    contributions,
    learn,
    loss_of,
    train_on,
)

WIDTH = 9
PLANTED = 8
EVERY_COURSE = pytest.mark.parametrize(
    "course",
    [
        Course(iterations=4, inner=inner, step=step, start=start, truncate=truncate)
        for inner in (0, 2)
        for step in Step
        for start in (Start.ZERO, Start.RANDOM)
        for truncate in (Truncate.L2, Truncate.CONTRIBUTION)
    ],
    ids=lambda each: f"{each.inner}-{each.step.value}-{each.start.value}-{each.truncate.value}",
)

Layer = tuple[Tensor, Tensor, list[int]]
"""H [columns, samples], W [outputs, columns], and the unit of each column."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_layers() -> list[Layer]:
    """Return a layer with one column per unit, and one with three, in another order."""
    one = (draw(0, WIDTH, 40).relu(), draw(1, 5, WIDTH), list(range(WIDTH)))
    many = (draw(2, 3 * WIDTH, 40), draw(3, 4, 3 * WIDTH), [unit for _ in range(3) for unit in range(WIDTH)])
    return [one, many]


def readers_of(layers: list[Layer]) -> list[Reader]:
    return [Reader(hidden @ hidden.T, weight, torch.tensor(units)) for hidden, weight, units in layers]


def single(hidden: Tensor, weight: Tensor) -> list[Reader]:
    return readers_of([(hidden, weight, list(range(len(hidden))))])


def naive(
    layers: list[Layer], size: int, course: Course, draws: Tensor
) -> tuple[set[int], list[Tensor], list[float]]:
    """Return S, W and the losses, column by column."""

    def best(values: list[float], among: set[int]) -> set[int]:
        return set(sorted(among, key=lambda unit: (-values[unit], unit))[:size])

    def norms(matrices: list[Tensor], *, weighed: bool) -> list[float]:
        squares = [0.0] * WIDTH
        for (hidden, _, units), matrix in zip(layers, matrices, strict=True):
            for column, unit in enumerate(units):
                scale = float(hidden[column].square().sum()) if weighed else 1.0
                squares[unit] += float(matrix[:, column].square().sum()) * scale
        return [square**0.5 for square in squares]

    def keep(matrices: list[Tensor], wanted: set[int]) -> list[Tensor]:
        found = [torch.zeros_like(matrix) for matrix in matrices]
        for (_, _, units), matrix, zero in zip(layers, matrices, found, strict=True):
            for column, unit in enumerate(units):
                if unit in wanted:
                    zero[:, column] = matrix[:, column]
        return found

    def gradients(weights: list[Tensor]) -> list[Tensor]:
        return [(new @ h - w @ h) @ h.T for (h, w, _), new in zip(layers, weights, strict=True)]

    def loss(weights: list[Tensor]) -> float:
        return (
            sum(
                float((new @ h - w @ h).square().sum())
                for (h, w, _), new in zip(layers, weights, strict=True)
            )
            / 2
        )

    def stepped(weights: list[Tensor], wanted: set[int]) -> list[Tensor]:
        slope = keep(gradients(weights), wanted)
        above = sum(float(g.square().sum()) for g in slope)
        below = sum(float((g @ h).square().sum()) for (h, _, _), g in zip(layers, slope, strict=True))
        length = above / below if below else 0.0
        return [w - length * g for w, g in zip(weights, slope, strict=True)]

    selected = best(draws.tolist(), set(range(WIDTH))) if course.start is Start.RANDOM else set[int]()
    weights = keep([w for _, w, _ in layers], selected)
    losses = [loss(weights)]
    for _ in range(course.iterations):
        others = set(range(WIDTH)) - selected
        candidates = selected | best(norms(gradients(weights), weighed=False), others)
        if course.step is Step.LINE_SEARCH:
            weights = stepped(weights, candidates)
        else:
            weights = [torch.zeros_like(w) for w in weights]
            for (hidden, dense, units), new in zip(layers, weights, strict=True):
                columns = [column for column, unit in enumerate(units) if unit in candidates]
                new[:, columns] = dense @ hidden @ torch.linalg.pinv(hidden[columns])
        selected = best(norms(weights, weighed=course.truncate is Truncate.CONTRIBUTION), candidates)
        weights = keep(weights, selected)
        for _ in range(course.inner):
            weights = stepped(weights, selected)
        losses.append(loss(weights))
    return selected, weights, losses


@EVERY_COURSE
@pytest.mark.parametrize("size", (2, 4, 7))
def test_agrees_with_the_steps_written_out(size: int, course: Course) -> None:
    layers, draws = two_layers(), draw(4, WIDTH)
    found = learn(readers_of(layers), WIDTH, size, course, draws)
    selected, weights, losses = naive(layers, size, course, draws)
    assert set(found.support.nonzero().flatten().tolist()) == selected
    for weight, expected in zip(found.weights, weights, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-7, atol=1e-9)
    count = len(found.losses)
    assert found.losses == pytest.approx(losses[:count], rel=1e-9)
    assert count == 1 + course.iterations or losses[count - 1] == pytest.approx(losses[count - 2], rel=1e-6)


@pytest.mark.parametrize("step", tuple(Step))
def test_the_tiny_example(step: Step) -> None:
    hidden = torch.tensor([[1.0, 2.0], [4.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    readers = single(hidden, torch.ones(1, 3, dtype=torch.float64))
    gradient = -readers[0].weight @ readers[0].gram
    assert gradient.tolist() == [[-19, -48, -7]]
    for inner in (0, 5):
        found = learn(readers, 3, 1, Course(iterations=1, inner=inner, step=step))
        assert found.support.tolist() == [False, True, False]
        torch.testing.assert_close(found.weights[0], torch.tensor([[0, 1.5, 0]], dtype=torch.float64))
        assert found.losses == pytest.approx((37, 1))
        assert found.energy == pytest.approx(74)
        assert found.relative == pytest.approx((0.5, 1 / 74))


def planted(seed: int) -> tuple[list[Reader], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = 1e-3 * torch.rand(100, 256, generator=generator, dtype=torch.float64)
    support = torch.randperm(100, generator=generator)[:PLANTED]
    hidden[support] = 0.5 + torch.rand(PLANTED, 256, generator=generator, dtype=torch.float64)
    weight = torch.randn(60, 100, generator=generator, dtype=torch.float64)
    mask = torch.zeros(100, dtype=torch.bool)
    mask[support] = True
    return single(hidden, weight), mask, torch.rand(100, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("start", (Start.ZERO, Start.RANDOM))
@pytest.mark.parametrize("step", tuple(Step))
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_support_is_recovered(seed: int, step: Step, start: Start) -> None:
    readers, support, draws = planted(seed)
    found = learn(readers, 100, PLANTED, Course(step=step, start=start), draws)
    assert torch.equal(found.support, support)
    best = train_on(readers, support, Course(iterations=200)).losses[-1]
    assert found.losses[-1] == pytest.approx(best, rel=1e-3)
    assert best == pytest.approx(0.06, abs=0.01)


@pytest.mark.parametrize(
    "course", (Course(start=Start.RANDOM), Course(step=Step.CLOSED_FORM)), ids=("random", "closed-form")
)
def test_plain_norms_are_left_where_they_keep_wrong_units(course: Course) -> None:
    readers, support, draws = planted(0)
    found = learn(readers, 100, PLANTED, course, draws)
    assert len(found.notes) == 1
    assert "selected by `truncate=contribution`" in found.notes[0]
    plain = Course(step=course.step, start=course.start, truncate=Truncate.L2)
    wrong = learn(readers, 100, PLANTED, plain, draws)
    assert not torch.equal(wrong.support, support)
    assert wrong.losses[-1] > 1e4 * found.losses[-1]
    assert wrong.notes == ()
    assert learn(readers, 100, PLANTED).notes == ()


def test_the_step_length_is_the_best_there_is() -> None:
    readers = readers_of(two_layers())
    found = learn(readers, WIDTH, WIDTH - 1, Course(iterations=1, inner=0))
    slope = [-(reader.weight @ reader.gram) * found.support[reader.units] for reader in readers]
    (length,) = {round(float(w.sum() / -g.sum()), 12) for w, g in zip(found.weights, slope, strict=True)}

    def after(share: float) -> float:
        return loss_of(readers, tuple(-share * length * g for g in slope))

    assert after(1) < min(after(0.99), after(1.01), after(0))


def test_the_loss_falls_and_stops_when_nothing_changes() -> None:
    readers, support, _ = planted(1)
    found = learn(readers, 100, PLANTED)
    assert len(found.losses) < 21
    assert all(later <= earlier for earlier, later in zip(found.losses, found.losses[1:], strict=False))
    assert int(found.support.sum()) == PLANTED
    assert torch.equal(found.weights[0] != 0, support.expand(60, 100))


def test_training_on_given_units_never_raises_the_loss_and_ends_at_least_squares() -> None:
    hidden, weight = draw(0, WIDTH, 40), draw(1, 5, WIDTH)
    support = torch.arange(WIDTH) % 2 == 0
    found = train_on(single(hidden, weight), support, Course(iterations=500))
    assert all(later <= earlier for earlier, later in zip(found.losses, found.losses[1:], strict=False))
    best = weight @ hidden @ torch.linalg.pinv(hidden[support])
    torch.testing.assert_close(found.weights[0][:, support], best, rtol=1e-2, atol=1e-2)
    assert not found.weights[0][:, ~support].any()


def test_keeping_all_units_keeps_the_weights() -> None:
    readers = readers_of(two_layers())
    found = learn(readers, WIDTH, WIDTH)
    assert found.support.all()
    for reader, weight in zip(readers, found.weights, strict=True):
        assert torch.equal(reader.weight, weight)


def test_silent_layers_are_no_trouble() -> None:
    readers = single(torch.zeros(4, 6, dtype=torch.float64), draw(0, 3, 4))
    for step in Step:
        found = learn(readers, 4, 2, Course(step=step))
        assert (int(found.support.sum()), found.losses[-1], found.relative[-1]) == (2, 0, 0)


def test_contributions_are_norms_of_weights_times_norms_of_activations() -> None:
    layers = two_layers()
    expected = torch.zeros(WIDTH, dtype=torch.float64)
    for hidden, weight, units in layers:
        for column, unit in enumerate(units):
            expected[unit] += (weight[:, column].norm() * hidden[column].norm()) ** 2
    torch.testing.assert_close(contributions(readers_of(layers), WIDTH), expected.sqrt())


def test_a_start_from_the_dense_weights_has_no_gradient_and_is_refused() -> None:
    reader = readers_of(two_layers())[0]
    dense = Learned(torch.ones(WIDTH, dtype=torch.bool), (reader.weight,), (0.0,), 1.0)
    assert not ((dense.weights[0] - reader.weight) @ reader.gram).any()
    with pytest.raises(UsageError, match="`start=original` leads nowhere: .* the gradient is zero"):
        Course(start=Start.ORIGINAL)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="`iterations` is a whole number from 1 on, not 0"):
        Course(iterations=0)
    with pytest.raises(UsageError, match="`inner` is a whole number from 0 on, not -1"):
        Course(inner=-1)
    with pytest.raises(UsageError, match="`start=random` needs a random number per unit"):
        learn(readers_of(two_layers()), WIDTH, 2, Course(start=Start.RANDOM))
