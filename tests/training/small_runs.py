"""Training runs so small that a test can stop one at every minibatch, and see whether it ends the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.functional import cross_entropy

from prunecli.data import Evaluation, Samples, Shuffled, parse_augmentation
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Structure
from prunecli.history import EpochRow
from prunecli.recipe import Recipe
from prunecli.spec import InputSpec, ModelSpec
from prunecli.spec.model_spec import TaskSpec
from prunecli.training import (
    Course,
    Interrupted,
    Schedule,
    Tick,
    Training,
    Wishes,
    build_schedule,
    saving,
    train,
)

CLASSES = 3


class Mlp(nn.Sequential):
    """Two layers of units, with dropout between them."""

    shape = (6,)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(6, 10),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(10, 8),
            nn.ReLU(),
            nn.Linear(8, CLASSES),
        )


class Residual(nn.Module):
    """Convolutions with batch norms around a residual stage, a grouped one among them, and dropout."""

    shape = (2, 4, 4)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False, groups=8), nn.BatchNorm2d(8)
        self.outer, self.outer_norm = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(images)).relu()
        y = self.deep_norm(self.deep(self.inner_norm(self.inner(x)).relu())).relu()
        x = (x + self.outer_norm(self.outer(y))).relu()
        return self.head(self.dropout(x.mean((2, 3))))


class Grouped(nn.Sequential):
    """A grouped convolution, whose groups must stay equally wide, and a flattened head."""

    shape = (2, 4, 4)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(
                2, 8, 3, padding=1, bias=False
            ),  # before a norm, Adam makes steps of its rounding errors
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(128, CLASSES),
        )


def make(net: Callable[..., nn.Module], dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """Return a new network in float64."""
    torch.manual_seed(seed)
    return net(dropout).double()


def structure_of(model: nn.Module) -> Structure:
    """Return the groups of a network."""
    return find_groups(copy.deepcopy(model).float().eval(), (torch.zeros(2, *model.shape),))  # type: ignore[arg-type]


def samples_of(shape: Sequence[int], count: int = 20, seed: int = 3) -> Samples:
    """Return samples whose class a small network can learn."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator)
    labels = (inputs.flatten(1)[:, :CLASSES]).argmax(1)

    def fetch(positions: Sequence[int]) -> tuple[Any, Any]:
        return inputs[list(positions)], labels[list(positions)]

    spec = ModelSpec("torchvision:resnet18", inputs=(InputSpec(tuple(shape)),))
    return Samples("made up", spec, fetch, range(count))


@dataclass
class Walker:
    """Goes along; stops the run before the minibatch of a number, and keeps what is told."""

    stop_at: int | None = None
    ticks: list[Tick] = field(default_factory=list)
    rows: list[EpochRow] = field(default_factory=list)
    judge: Callable[[nn.Module], Evaluation | None] = lambda model: None  # noqa: E731

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)

    def evaluate(self, model: nn.Module) -> Evaluation | None:
        return self.judge(model)

    def epoch_over(self, training: Training, row: EpochRow) -> None:
        self.rows.append(row)

    @property
    def wants_to_stop(self) -> bool:
        return self.stop_at is not None and len(self.ticks) >= self.stop_at


@dataclass(frozen=True)
class Plan:
    """How to set up one run, again and again."""

    net: Callable[..., nn.Module] = Mlp
    recipe: Recipe = Recipe(epochs=3, lr=0.05)
    schedule: str = "none"
    arguments: dict[str, object] = field(default_factory=dict)
    wishes: Wishes = Wishes()
    dropout: float = 0.0
    batch: int = 4
    count: int = 20
    seed: int = 0
    autocast: torch.dtype | None = None
    single: bool = False
    """In float32, as training with autocast wants it."""

    def start(self, model: nn.Module | None = None) -> tuple[Training, Schedule, Course]:
        """Return a fresh run."""
        model = make(self.net, self.dropout) if model is None else model
        model = model.float() if self.single else model
        if self.recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        augment = parse_augmentation(self.recipe.augment) if self.recipe.augment else None
        stream = Shuffled(samples_of(model.shape, self.count), self.batch, self.seed, augment)
        wishes = Wishes(**{**vars(self.wishes), "loss_fn": cross_entropy})
        schedule = build_schedule(self.schedule, self.arguments, wishes)
        structure = structure_of(model) if schedule.info.prunes else None
        training = Training(model, self.recipe, stream.batch_count, structure)
        training.scaler = GradScaler("cpu", init_scale=2.0**30, enabled=self.autocast is torch.float16)
        smoothing = self.recipe.label_smoothing
        course = Course(
            stream,
            lambda output, targets, inputs: cross_entropy(output, targets, label_smoothing=smoothing),
            TaskSpec(),
            classes=CLASSES,
            seed=self.seed,
            autocast=self.autocast,
        )
        return training, schedule, course

    def run(self, judge: Callable[[nn.Module], Evaluation | None] = lambda model: None) -> Training:
        """Return the run at its end."""
        training, schedule, course = self.start()
        schedule.check(training)
        train(training, schedule, course, Walker(judge=judge))
        return training

    def stop(self, after: int) -> bytes | None:
        """Return what is kept of a run that is stopped after so many minibatches; None: it ended before."""
        training, schedule, course = self.start()
        schedule.check(training)
        try:
            train(training, schedule, course, Walker(after))
        except Interrupted:
            return saving.to_bytes(training, schedule, {})
        return None

    def resume(self, content: bytes) -> tuple[Training, Schedule]:
        """Return the end of a run that is taken up again."""
        training, schedule, course = self.start()
        saving.from_bytes(content, "a test").restore(training, schedule)
        train(training, schedule, course, Walker())
        return training, schedule


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return everything that a model holds."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(found: nn.Module, expected: nn.Module, within: float = 0.0) -> None:
    """Compare two models tensor by tensor; by default bit by bit."""
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    for name, tensor in ours.items():
        assert bool(((tensor - theirs[name]).abs() <= within).all()), name
