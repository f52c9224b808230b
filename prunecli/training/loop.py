"""The training loop: minibatch by minibatch, epoch by epoch, phase by phase, as the schedule says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunecli.data import Batch, Evaluation, Shuffled, hit_share
from prunecli.errors import DataError
from prunecli.graph.not_finite import where_not_finite
from prunecli.history import EpochRow
from prunecli.importance.micro_batches import MicroBatch, joined
from prunecli.spec.model_spec import Metric, TaskSpec
from prunecli.training.schedule import Schedule
from prunecli.training.together import add_up_gradients, check_same
from prunecli.training.training import Tally, Training


class Interrupted(KeyboardInterrupt):  # noqa: N818 - not an error
    """Somebody asked the run to stop; it stands between two minibatches, and can be saved."""


@dataclass(frozen=True)
class Tick:
    """How far a run is, told after each minibatch."""

    phase: str
    epoch: int
    """The one that is running, counted from 1."""
    epochs: int
    """How many there will be, as far as the phase knows."""
    batch: int
    batches: int
    samples: int
    """Done in this epoch."""
    loss: float
    """Mean over the epoch so far."""
    top1: float | None


LossOf = Callable[[Any, Any, Any], Tensor]
"""(output, targets, inputs) -> the mean loss of a minibatch."""


class Company(Protocol):
    """Who goes along with a run: it hears how far it is, measures the model, and writes it down."""

    def tick(self, tick: Tick) -> None:
        """Hear that a minibatch is done."""
        ...

    def evaluate(self, model: nn.Module) -> Evaluation | None:
        """Return how good the model is on test data; None without any."""
        ...

    def epoch_over(self, training: Training, row: EpochRow) -> None:
        """Hear that an epoch is over and the run stands ready for the next one: the time to save."""
        ...

    @property
    def wants_to_stop(self) -> bool:
        """Whether somebody asked the run to stop."""
        ...


@dataclass(frozen=True, eq=False)
class Course:
    """What a run trains on and how a step is made; none of it changes on the way."""

    stream: Shuffled
    loss_of: LossOf
    task: TaskSpec
    """How accuracy is understood, and what says which epoch is best."""
    classes: int | None = None
    """How many classes the model tells apart, where it does; mixtures of samples need to know."""
    seed: int = 0
    device: torch.device = torch.device("cpu")
    autocast: torch.dtype | None = None
    """The precision of the forward pass; the parameters keep theirs."""
    explaining: Callable[[nn.Module], AbstractContextManager[None]] = lambda model: nullcontext()  # noqa: E731
    """What the user's own code runs in: it says what failed, and where."""


def train(training: Training, schedule: Schedule, course: Course, company: Company) -> None:
    """Train until the schedule has no further phase, or training stops getting better.

    Every minibatch draws its random numbers from the seed and its number alone, so that a run which is
    taken up again, at any minibatch, ends in the same weights as one that was never interrupted.

    Raises:
        Interrupted: the company wants to stop. The run stands between two minibatches.
        DataError: the loss is not finite.
    """
    training.evaluate = company.evaluate
    if training.phase is None and not training.place.is_over:
        training.follow_average()
        training.begin(schedule.first_phase(training))
    while not training.place.is_over:
        assert training.phase is not None
        if training.place.phase_epoch < training.phase.epochs:
            _run_epoch(training, schedule, course, company)
            row = _close_epoch(training, schedule, course, company)
            training.planned = training.place.epoch - training.place.phase_epoch + training.phase.epochs
        else:  # a phase without epochs, or one that has just ended
            row = None
        if training.place.phase_epoch >= training.phase.epochs:
            _turn(training, schedule)
        if row is not None:
            check_same(training)
            training.history.append(replace(row, notes=(*row.notes, *training.notes)))
            training.notes.clear()
            company.epoch_over(training, training.history[-1])


def _turn(training: Training, schedule: Schedule) -> None:
    """Let the schedule act between two phases."""
    phase = schedule.next_phase(training)
    if phase is None:
        training.place.is_over = True
        training.phase = None
    else:
        training.begin(phase)


def _run_epoch(training: Training, schedule: Schedule, course: Course, company: Company) -> None:
    assert training.phase is not None
    step = _Step(training, schedule, course)
    training.model.train(training.phase.trains)
    for batch in course.stream.epoch(training.place.epoch, training.place.batch):
        if company.wants_to_stop:
            raise Interrupted
        with _drawing_from(course, training.place.step, training.peers.rank):
            step.take(batch)
        company.tick(_tick(training, course))


def _close_epoch(training: Training, schedule: Schedule, course: Course, company: Company) -> EpochRow:
    assert training.phase is not None
    found = company.evaluate(training.judged)
    place, tally = training.place, training.tally
    place.epoch, place.phase_epoch, place.batch = place.epoch + 1, place.phase_epoch + 1, 0
    costs = training.now
    row = EpochRow(
        epoch=place.epoch,
        phase=training.phase.name,
        rate=tally.rate,
        loss=tally.loss / max(tally.samples, 1),
        top1=tally.hits / tally.judged if tally.judged else None,
        test_loss=found.loss if found and isfinite(found.loss) else None,
        test_top1=found.top1 if found else None,
        test_top5=found.top5 if found else None,
        units=training.unit_count if costs else None,
        params=costs.parameter_count(training.local(training.kept)) if costs else None,
        macs=costs.macs(training.local(training.kept)) if costs else None,
    )
    if found and not isfinite(found.loss):
        training.notes.append(f"the test loss is {found.loss}")
    training.tally = Tally()
    _judge(training, row, course.task.metric, schedule.may_stop_early(training))
    return schedule.after_epoch(training, row)


def _judge(training: Training, row: EpochRow, metric: Metric, may_stop: bool) -> None:
    """Remember the best epoch, and end the phase where none was better for long enough, if it may end."""
    value = {
        Metric.TOP1: row.test_top1,
        Metric.TOP5: row.test_top5,
        Metric.LOSS: None,
    }[metric]
    if value is None and row.test_loss is not None:
        value = -row.test_loss
    place, patience = training.place, training.recipe.patience
    if value is None:
        return
    if place.best_value is None or value > place.best_value:
        place.best_epoch, place.best_value = place.epoch, value
    elif may_stop and patience is not None and place.epoch - place.best_epoch >= patience:
        training.notes.append(f"no better than epoch {place.best_epoch} for {patience} epochs: stopped")
        training.end_phase()


class _Step:
    """Makes one step per minibatch."""

    def __init__(self, training: Training, schedule: Schedule, course: Course) -> None:
        self.training, self.schedule, self.course = training, schedule, course
        self.scaler = training.scaler

    def take(self, batch: Batch) -> None:
        """Run forward and backward on a minibatch, and let the optimizer step when it is time.

        Several processes do so together, each with its part of the minibatch.
        """
        training, course = self.training, self.course
        assert training.phase is not None
        whole, part = self._received(batch)
        output = loss = None
        with course.explaining(training.model), self._autocast(), self.schedule.watching(training):
            if part.samples:
                output = _output(training.model, part)
                loss = course.loss_of(output, part.targets, part.inputs)
        value = self._count(loss, output, part)
        if not isfinite(value):
            raise self._diverged(value, loss, part)
        self._differentiate(loss, part.samples / whole.samples)
        is_due = (training.place.batch + 1) % training.recipe.accumulate == 0
        is_due = is_due or training.place.batch + 1 == training.steps_per_epoch
        if is_due:
            add_up_gradients(training.model, training.peers)
        is_sound = self._unscale() if is_due else True
        if is_sound:  # else nothing moves, and there is nothing to learn from it
            self.schedule.after_backward(training, whole)
        training.place.batch += 1
        training.place.step += 1
        if is_due:
            self._move(is_sound)
        if is_sound:
            self.schedule.after_step(training, value)

    def _received(self, batch: Batch) -> tuple[MicroBatch, MicroBatch]:
        """Return the minibatch as schedules see it, and this process's part of it, where the model runs."""
        training, course, peers = self.training, self.course, self.training.peers
        assert training.phase is not None
        place, classes = training.place, course.classes
        count = course.stream.size_of(place.batch)
        own = peers.part(count)
        mixes = course.stream.mixes and classes is not None and training.phase.trains
        is_whole = not peers.are_several or mixes or self.schedule.looks_at_samples
        part = MicroBatch(*batch, own.stop - own.start)
        if peers.are_several and is_whole:
            part = joined([each for each in peers.heard(part) if each.samples])
        inputs, targets = tree_map_only(Tensor, self._moved, (part.inputs, part.targets))
        if mixes:
            assert classes is not None
            inputs, targets = course.stream.mix((inputs, targets), classes, place.epoch, place.batch)
        found = MicroBatch(inputs, targets, part.samples)
        return (found, found.cut(own.start, own.stop)) if is_whole else (MicroBatch((), None, count), found)

    def _differentiate(self, loss: Tensor | None, share: float) -> None:
        """Add this process's share of the minibatch's gradient to what the parameters hold."""
        if loss is None:  # then it has no share; but the scaler is to know that there was a minibatch
            self.scaler.scale(torch.zeros((), device=self.course.device))
        else:
            self.scaler.scale(loss * share / self._together).backward()

    def _diverged(self, value: float, loss: Tensor | None, part: MicroBatch) -> DataError:
        """Return what to say of a loss that is not finite: where, and which module made it so."""
        place, own = self.training.place, ""
        if loss is not None and not isfinite(loss.item()):
            args, kwargs = ((), part.inputs) if isinstance(part.inputs, Mapping) else (part.inputs, {})
            with self._autocast():
                own = where_not_finite(self.training.model, args, kwargs)
        blame = next(filter(None, self.training.peers.heard(own)), "")
        return DataError(
            f"The loss became {value} in epoch {place.epoch + 1}, minibatch {place.batch}.{blame} "
            "Lower `--lr`, add `--warmup` or `--clip`, or train in float32."
        )

    @property
    def _together(self) -> int:
        """How many minibatches share a step with the one that is running: fewer at the end of an epoch."""
        training, group = self.training, self.training.recipe.accumulate
        first = training.place.batch - training.place.batch % group
        return min(group, training.steps_per_epoch - first)

    def _unscale(self) -> bool:
        """Take the loss scale of float16 out of the gradients; return whether none of them overflowed."""
        if not self.scaler.is_enabled():
            return True
        assert self.training.optimising is not None
        self.scaler.unscale_(self.training.optimising.optimizer)
        found = (each.grad for each in self.training.model.parameters() if each.grad is not None)
        return all(bool(gradient.isfinite().all()) for gradient in found)

    def _move(self, is_sound: bool) -> None:
        """Let the optimizer step if the gradients are sound, and clear them."""
        training = self.training
        assert training.optimising is not None
        assert training.phase is not None
        optimizer, rate = training.optimising.optimizer, training.optimising.rate
        if training.phase.trains and is_sound:
            self.schedule.before_step(training)
            training.mask_gradients()
            if training.recipe.clip is not None:
                nn.utils.clip_grad_norm_(training.model.parameters(), training.recipe.clip)
            self.scaler.step(optimizer)
            rate.step()
            training.silence()
            if training.average is not None:
                training.average.update_parameters(training.model)
        self.scaler.update()
        optimizer.zero_grad()

    def _count(self, loss: Tensor | None, output: Any, part: MicroBatch) -> float:
        """Count the minibatch as all processes saw it, and return its mean loss."""
        tally, peers, task = self.training.tally, self.training.peers, self.course.task
        if not tally.samples and self.training.optimising is not None:
            tally.rate = self.training.optimising.rate_now
        value = loss.item() if loss is not None else 0.0
        with torch.no_grad():
            counts = loss is not None and task.counts_hits
            share = hit_share(output, part.targets, 1, task.loss) if counts else None
        own = part.samples if share is not None else 0
        total, samples, hits, judged = peers.summed(
            [value * part.samples, part.samples, (share or 0.0) * own, own]
        )
        tally.loss += total
        tally.samples += int(samples)
        tally.hits += hits
        tally.judged += int(judged)
        return total / samples if peers.are_several else value

    def _moved(self, tensor: Tensor) -> Tensor:
        like = next(self.training.model.parameters())
        dtype = like.dtype if tensor.is_floating_point() and self.course.autocast is None else None
        moved = tensor.to(self.course.device, dtype, non_blocking=True)
        if self.training.recipe.channels_last and moved.ndim == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        return moved

    def _autocast(self) -> torch.autocast:
        dtype = self.course.autocast
        return torch.autocast(self.course.device.type, dtype=dtype, enabled=dtype is not None)


def _output(model: nn.Module, part: MicroBatch) -> Any:
    return model(**part.inputs) if isinstance(part.inputs, Mapping) else model(*part.inputs)


@contextmanager
def _drawing_from(course: Course, step: int, rank: int) -> Iterator[None]:
    """Seed torch's generators for one minibatch, in each process differently, and give them back."""
    numbers = [course.seed, step, rank] if rank else [course.seed, step]
    drawn = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng(devices=[course.device] if course.device.type == "cuda" else []):
        torch.manual_seed(int(drawn))
        yield


def _tick(training: Training, course: Course) -> Tick:
    assert training.phase is not None
    place, tally = training.place, training.tally
    return Tick(
        training.phase.name,
        place.epoch + 1,
        place.epoch - place.phase_epoch + training.phase.epochs,
        place.batch,
        course.stream.batch_count,
        tally.samples,
        tally.loss / max(tally.samples, 1),
        tally.hits / tally.judged if tally.judged else None,
    )
