"""A model, a schedule and training data -> a trained model; kept on disk on the way, and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from prunecli import data
from prunecli.arguments import arguments_of
from prunecli.errors import DataError, UsageError
from prunecli.export.files import write_files
from prunecli.graph.copying import clean_copy
from prunecli.history import EpochRow
from prunecli.model import build_model
from prunecli.peers import Peers
from prunecli.pipeline.keeping import Job, Keeper, on_cpu, owned, settings_of
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened, open_model
from prunecli.pipeline.running import Place, explained, float_dtype
from prunecli.pipeline.scoring import digests_of_code
from prunecli.pipeline.stopping import stopping_on_signals
from prunecli.pipeline.versions import versions
from prunecli.recipe import Recipe
from prunecli.report import PhaseFacts, TrainingFacts, training_pictures
from prunecli.strict_json import to_plain
from prunecli.training.distillation import distance
from prunecli.training.loop import Course, Interrupted, LossOf, train
from prunecli.training.schedule import Wishes
from prunecli.training.training import Training

_SAME_SIGNAL = 2.0
"""So many seconds apart, signals to a process that torchrun started are the same one."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out: the model on the CPU, with all that happened to it."""

    model: nn.Module
    training: Training
    facts: TrainingFacts


def run_training(job: Job, place: Place, listener: Listener) -> Trained:
    """Train as the job says; its folder holds the state, the history, the last and best model, and pictures.

    Raises:
        KeyboardInterrupt: somebody stopped it; everything is kept, `--resume` goes on.
        DataError: there is no training data, or the loss is not finite.
        CheckpointError: the run on disk was started with other settings.
        InputError: another process was told something else.
        Dismissed: this process has done its part, and is not the first.
    """
    job.recipe.check()
    _check_judge(job)
    processes = place.processes
    course = _course(job, place, listener)
    _note_idle(course.stream, listener)
    place = place.in_full
    training = Training(
        _ready(job.opened.model, job, place),
        job.recipe,
        course.stream.batch_count,
        job.opened.structure if job.schedule.info.prunes else None,
        scaler=GradScaler(place.device.type, enabled=course.autocast is torch.float16),
        masks=job.opened.masks or {},
        peers=processes,
    )
    job.schedule.wishes = _with_means(job, training, course, place)
    _agree(job, place)
    with (
        owned(job.folder) if processes.is_first else nullcontext(),
        stopping_on_signals(_SAME_SIGNAL if processes.are_several else 0.0) as stop,
    ):
        keeper = Keeper(job, training, place, listener, stop)
        _go(job, training, course, keeper)
    processes.dismiss_others()
    training.shrink()
    if _takes_best(job) and training.place.best_epoch not in (0, training.place.epoch):
        keeper.fill_with_best()
        listener.note(f"taking epoch {training.place.best_epoch}, the best on the test data")
    facts = _facts(job, training)
    pictures = training_pictures(facts)
    write_files({job.folder / name: picture.encode() for name, picture in pictures.items()}, force=True)
    return Trained(on_cpu(training.judged, job.opened.model), training, facts)


def _agree(job: Job, place: Place) -> None:
    """Make sure that all processes train the same, and have looked at the folder before it is written to.

    Raises:
        InputError: they do not.
        PeerError: another process failed.
    """
    place.processes.agree(
        {
            "choice of settings": [settings_of(job), str(job.run)],
            "code": digests_of_code(job.opened.spec),
            "device": place.device.type,
            "version of a package": versions(),
        }
    )


def _note_idle(stream: data.Shuffled, listener: Listener) -> None:
    """Say so where minibatches have too few samples for all processes."""
    count = stream.peers.count
    size = stream.size_of(0)
    busy = sum(part.stop > part.start for part in (Peers(rank, count).part(size) for rank in range(count)))
    if busy < count:
        listener.note(
            f"minibatches of {size} samples for {count} processes: {count - busy} have nothing to do"
        )


def _go(job: Job, training: Training, course: Course, keeper: Keeper) -> None:
    """Train from the start, or from where the run on disk stands; keep it when somebody stops it."""
    if job.run.resume:
        keeper.take_up()
    else:
        job.schedule.check(training)
        keeper.start()
    try:
        train(training, job.schedule, course, keeper)
    except Interrupted:
        keeper.save()
        where = f"epoch {training.place.epoch + 1}, minibatch {training.place.batch}"
        keeper.listener.warn(f"stopped in {where}; the same command with `--resume` goes on from there")
        raise KeyboardInterrupt from None
    keeper.save()


def _course(job: Job, place: Place, listener: Listener) -> Course:
    """Return what is trained on, and how a step is made."""
    stream, classes = _open_stream(job, place.processes), _classes(job.opened)
    if classes is None and stream.augment is not None and stream.augment.mixtures:
        raise UsageError("`--augment mixup` and `cutmix` mix classes, which this model does not tell apart.")
    return Course(
        stream,
        _loss_of(job, place.in_full, listener),
        job.opened.spec.task,
        classes,
        job.machine.seed,
        place.device,
        autocast=place.dtype if place.dtype in (torch.bfloat16, torch.float16) else None,
        explaining=lambda model: explained(model, "Training"),
    )


def _with_means(job: Job, training: Training, course: Course, place: Place) -> Wishes:
    """Return the wishes of the user, and the means that a schedule may need to carry them out."""
    stream, dtype = course.stream, float_dtype(training.model)
    return replace(
        job.schedule.wishes,
        loss_fn=data.loss_function(job.opened.spec),
        fresh=_fresh(job, place),
        sample=lambda count: data.batches(
            stream.samples,
            stream.batch_size,
            count,
            stream.seed,
            place.device,
            dtype,
            first=stream.peers.rank,
            every=stream.peers.count,
        ),
    )


def _ready(model: nn.Module, job: Job, place: Place) -> nn.Module:
    """Return a copy of a model to train, where it runs."""
    ready = clean_copy(place.lend(model))
    return ready.to(memory_format=torch.channels_last) if job.recipe.channels_last else ready


def _fresh(job: Job, place: Place) -> Callable[[int], nn.Module] | None:
    """Return what builds a new model anew, from another seed."""
    if job.opened.checkpoint is not None:
        return None
    return lambda seed: _ready(build_model(job.opened.spec, seed=seed), job, place)


def _check_judge(job: Job) -> None:
    """Refuse to look for the best epoch where nothing tells which it is."""
    options = {"--take best": job.run.take == "best", "--patience": job.recipe.patience is not None}
    asked = next((option for option, is_given in options.items() if is_given), None)
    if asked is not None and job.opened.spec.data.test is None:
        raise DataError(
            f"`{asked}` looks for the best epoch on test data, and the spec names none under `[data] test`. "
            "Add e.g. `--test-data npz:test.npz`, or leave it out."
        )


def _open_stream(job: Job, peers: Peers) -> data.Shuffled:
    spec = job.opened.spec
    if spec.data.train is None:
        raise DataError(
            "Training looks at samples, and the spec names none under `[data] train`. Add e.g. "
            "`--train-data npz:train.npz`."
        )
    dataset = data.open_data(spec.data.train, spec, download=job.samples.download, seed=job.machine.seed)
    augment = data.parse_augmentation(job.recipe.augment) if job.recipe.augment else None
    return data.Shuffled(
        dataset, job.samples.batch_size, job.machine.seed, augment, job.recipe.workers, peers
    )


def _loss_of(job: Job, place: Place, listener: Listener) -> LossOf:
    """Return the loss of the spec, mixed with that of the dense model's answers where one teaches."""
    own = data.loss_function(job.opened.spec, label_smoothing=job.recipe.label_smoothing)
    if job.recipe.distill is None:
        return lambda output, targets, inputs: own(output, targets)
    if job.opened.spec.task.loss != "cross-entropy":
        loss = job.opened.spec.task.loss
        raise UsageError(f"`--distill` compares classes, and the loss of the spec is `{loss}`. Leave it out.")
    source = replace(job.source, key=None)  # which is that of the checkpoint in training
    opened = open_model(job.recipe.distill, source, job.samples, listener, spec=job.opened.spec)
    teacher = place.lend(opened.model).eval()
    share, temperature = job.recipe.distill_weight, job.recipe.distill_temperature

    def loss_of(output: Any, targets: Any, inputs: Any) -> Tensor:
        with torch.no_grad():
            answers = teacher(**inputs) if isinstance(inputs, Mapping) else teacher(*inputs)
        return (1 - share) * own(output, targets) + share * distance(output, answers, targets, temperature)

    return loss_of


def _classes(opened: Opened) -> int | None:
    """Return how many classes the model tells apart; None where it does not."""
    if opened.spec.task.loss != "cross-entropy":
        return None
    args, kwargs = opened.example
    with torch.no_grad(), explained(opened.model, "Running one sample"):
        output = data.main_output(opened.model(*args, **kwargs))
    return output.shape[1] if output.ndim == 2 else None


def _takes_best(job: Job) -> bool:
    return job.run.take == "best" or (job.run.take == "auto" and job.recipe.patience is not None)


def _facts(job: Job, training: Training) -> TrainingFacts:
    """Return what a report says of the run."""
    chosen = {item.name: getattr(job.recipe, item.name) for item in fields(Recipe)}
    usual = Recipe()
    asked = {name: value for name, value in chosen.items() if value != getattr(usual, name)}
    if job.recipe.distill is not None:
        asked["distill"] = Path(job.recipe.distill).name  # reports tell nobody's folders
    rows = training.history
    phases = [
        _phase([row for row in rows if row.phase == name])
        for name in dict.fromkeys(row.phase for row in rows)
    ]
    return TrainingFacts(
        schedule=job.schedule.info.name,
        arguments=to_plain(arguments_of(job.schedule)),
        recipe={"epochs": job.recipe.epochs, "lr": job.recipe.lr, **asked},
        batch_size=job.samples.batch_size,
        phases=tuple(phases),
        rows=tuple(rows),
        figures=to_plain(job.schedule.facts(training)),
    )


def _phase(rows: list[EpochRow]) -> PhaseFacts:
    last = rows[-1]
    tested = [row.test_top1 for row in rows if row.test_top1 is not None]
    return PhaseFacts(
        name=last.phase,
        epochs=len(rows),
        units=last.units,
        params=last.params,
        macs=last.macs,
        loss=last.loss,
        top1=last.top1,
        test_loss=last.test_loss,
        test_top1=last.test_top1,
        best_top1=max(tested) if tested else None,
        density=last.total_density,
        notes=tuple(note for row in rows for note in row.notes),
    )
