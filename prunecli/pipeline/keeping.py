"""A training run on disk: its state, history, last and best model, written while it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli import data
from prunecli.arguments import arguments_of
from prunecli.budget import Budget
from prunecli.checkpoint.names import printable
from prunecli.checkpoint.safetensors_files import read_safetensors
from prunecli.errors import CheckpointError, DataError, OutputError, UsageError
from prunecli.export.files import write_files
from prunecli.export.masks import to_record
from prunecli.export.record import PrunedRecord
from prunecli.export.to_safetensors import to_bytes
from prunecli.graph.copying import clean_copy, named_tensors
from prunecli.history import EpochRow, to_lines
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.measuring import Judge
from prunecli.pipeline.opening import Opened, parents_of
from prunecli.pipeline.running import Place
from prunecli.pipeline.settings import Machine, Run, Samples, Source
from prunecli.pipeline.telling import sizes_of
from prunecli.pipeline.versions import versions
from prunecli.recipe import Recipe
from prunecli.spec import to_json_dict
from prunecli.spec.rebase import rebase
from prunecli.strict_json import Json, to_plain
from prunecli.training import Schedule, Tick, Training, saving
from prunecli.training.together import gather_gradients
from prunecli.weights.masked import digest_of_masks
from prunecli.whole_file import read_whole

STATE = "state.safetensors"
"""What a run goes on from, in its folder."""
LAST, BEST, HISTORY = "last.safetensors", "best.safetensors", "history.jsonl"
LOCK = ".lock"
PICTURES = ("curves.svg", "density.svg", "colormap.svg")

SECONDS_BETWEEN_SAVES = 300.0
"""How long a run may lose when it is killed in the middle of an epoch."""

_TAKE_LAST = "Go on with `--resume --take last`, or start over with `--force`."
_NOT_THE_RUN = ("workers",)
"""Settings that change nothing but speed."""


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a training run is told."""

    opened: Opened
    schedule: Schedule
    recipe: Recipe
    samples: Samples
    machine: Machine
    run: Run
    source: Source
    folder: Path
    """Where the run is kept."""


def check_run(folder: Path, run: Run, force: bool) -> None:
    """Make sure, before long work starts, that the run's folder is free, or holds what is to be taken up.

    Raises:
        OutputError: it is taken, or there is nothing to take up.
    """
    can_go_on = (folder / STATE).is_file()
    found = [folder / name for name in (STATE, LAST, BEST, HISTORY) if os.path.lexists(folder / name)]
    is_new = all(path == folder / HISTORY and path.lstat().st_size == 0 for path in found)
    if run.resume and not can_go_on:
        advice = "Leave it out to start one." if is_new else "Start over with `--force` instead."
        raise OutputError(f"`--resume`: `{folder}` holds no run. {advice}")
    if not (run.resume or force or is_new):
        advice = "Go on with `--resume`, or start over" if can_go_on else "It cannot go on; start over"
        raise OutputError(f"`{folder}` holds a run already. {advice} with `--force`.")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep a run's folder for one process, as long as that lives, where the system can.

    A folder that is new, and in which nothing was kept, goes again.

    Raises:
        OutputError: another run writes there, the folder cannot be written, or a link in it leads elsewhere.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _refuse_links(folder)
                _lock(folder, stack)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise OutputError(f"`{folder}` cannot be written: {reason}.") from None
            yield
    finally:
        for each in made:
            with suppress(OSError):  # there is something in it
                each.rmdir()


def _refuse_links(folder: Path) -> None:
    """Refuse to write through links, which nobody named: the folder may have come from elsewhere."""
    links = sorted(path for path in folder.iterdir() if path.is_symlink())
    if links:
        raise OutputError(
            f"`{links[0]}` is a link, and files of a run are written in its folder. Take it out, or use "
            "another `--out`."
        )


def _lock(folder: Path, stack: ExitStack) -> None:
    """Lock the folder until the stack unwinds.

    Raises:
        OSError: the lock cannot be written.
        OutputError: another run has it.
    """
    path = folder / LOCK
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags, 0o666)
    stack.callback(os.close, handle)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(handle), path.stat())  # not one that its owner just took away
    except ImportError:  # a system without such locks
        is_ours = True
    except OSError:
        is_ours = False
    if not is_ours:
        raise OutputError(f"Another run is going on in `{folder}`. Use another `--out`.")
    stack.callback(path.unlink, missing_ok=True)


class Keeper:
    """Goes along with a run: tells how far it is, measures it, and writes it down."""

    def __init__(
        self,
        job: Job,
        training: Training,
        place: Place,
        listener: Listener,
        stop: Callable[[], bool],
    ) -> None:
        self.job, self.training, self.listener, self.stop = job, training, listener, stop
        self.judge = Judge(job.opened, job.samples, job.machine, place, listener)
        test = self.judge.test
        if test is not None and test.batch([0])[1] is None:
            raise DataError(f"`{test.source}` has no labels, and accuracy is measured on them.")
        self.settings = settings_of(job)
        self.next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
        self.others_stop = False
        """Whether any of several processes was asked to, as all of them know."""

    @property
    def wants_to_stop(self) -> bool:
        """Whether somebody asked the run to stop; several processes stop behind the same minibatch."""
        return self.others_stop if self.training.peers.are_several else self.stop()

    def tick(self, tick: Tick) -> None:
        """Pass on how far the run is; save it every few minutes."""
        self.listener.tick(tick)
        peers = self.training.peers
        is_due = time.monotonic() >= self.next_save
        stops, saves = peers.summed([self.stop(), is_due and peers.is_first])  # by one clock
        self.others_stop = stops > 0
        if saves:
            self.save()

    def evaluate(self, model: nn.Module) -> data.Evaluation | None:
        """Return how good the model is on the test data; None without any."""
        return self.judge.evaluate(model, "accuracy", peers=self.training.peers)

    def epoch_over(self, training: Training, row: EpochRow) -> None:
        """Tell what the epoch brought, and write everything down."""
        self.listener.epoch(row, training.planned)
        if training.peers.is_first:
            models = {LAST: self._model()}
            if training.place.best_epoch == training.place.epoch:
                models[BEST] = models[LAST]
            self._write(models)  # before the state: what is written again after a crash is the same
        self.save()

    def save(self) -> None:
        """Write down where the run stands; of several processes, the first one does."""
        gather_gradients(self.training)
        if self.training.peers.is_first:
            self._write(
                {
                    STATE: saving.to_bytes(self.training, self.job.schedule, self.settings),
                    HISTORY: to_lines(self.training.history).encode(),
                }
            )
        self.training.peers.from_first(None)  # if others ended while it writes, torchrun would end it too
        self.next_save = time.monotonic() + SECONDS_BETWEEN_SAVES

    def start(self) -> None:
        """Begin anew: what another run left in the folder goes, so that nothing is taken up from it.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not self.training.peers.is_first:
            return
        for name in (STATE, LAST, BEST, *PICTURES):
            (self.job.folder / name).unlink(missing_ok=True)
        self._write({HISTORY: b""})  # or the first epoch would be trained for a folder that takes nothing

    def take_up(self) -> None:
        """Go on with the run on disk.

        Raises:
            UsageError: it was started with other settings.
            CheckpointError: it is damaged, or cannot be read.
        """
        path, peers = self.job.folder / STATE, self.training.peers
        saved = saving.from_bytes(peers.from_first(_content(path) if peers.is_first else b""), str(path))
        differing = [
            f"another {name}"
            if name in ("checkpoint", "spec", "choice of masked weights")
            else f"{name} {_shown(saved.settings.get(name))}, not {_shown(value)}"
            for name, value in self.settings.items()
            if saved.settings.get(name) != value
        ]
        if differing:
            raise UsageError(
                f"`--resume`: the run in `{self.job.folder}` was started with {'; '.join(differing[:3])}. "
                "Give the same command, or start over with `--force`."
            )
        saved.restore(self.training, self.job.schedule)
        done = self.training.place
        self.listener.note(f"going on after epoch {done.epoch}, minibatch {done.batch} of the next")

    def fill_with_best(self) -> None:
        """Bring the model, which no silenced unit is left in, back to the best epoch.

        Raises:
            CheckpointError: the file of that epoch is damaged, or gone.
        """
        path = self.job.folder / BEST
        try:
            found, _ = read_safetensors(path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CheckpointError(f"`{path}` cannot be read: {reason}. {_TAKE_LAST}") from None
        own = named_tensors(self.training.judged)
        for name, tensor in own.items():
            shape = tuple(found[name].shape) if name in found else None
            if shape != tensor.shape and (shape is not None or isinstance(tensor, nn.Parameter)):
                has = f"has shape {list(shape)}" if shape is not None else "is not there"
                raise CheckpointError(
                    f"`{path}`: `{printable(name)}` {has}, but the model's has {list(tensor.shape)}: it is "
                    f"of another run. {_TAKE_LAST}"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                if name in found:  # buffers that no file keeps stay as they are
                    tensor.copy_(found[name])

    def _model(self) -> bytes:
        training, opened = self.training, self.job.opened
        model = on_cpu(training.result, opened.model)
        before = opened.record or PrunedRecord()
        attributes, rewritten = before.attributes, dict(before.rewritten)
        if training.structure is not None:
            attributes = sizes_of(opened, training.kept, model)
            is_smaller = any(not stays.all() for stays in training.kept.values())
            rewritten |= training.structure.rewritten if is_smaller else {}
        record = PrunedRecord(
            spec=to_json_dict(rebase(opened.spec, self.job.folder)),
            attributes=attributes,
            rewritten=rewritten,
            masks=to_record(training.result_masks, named_tensors(model)),
            method=before.method,
            parents=parents_of(opened),
            versions=versions(),
        )
        return to_bytes(model, record)

    def _write(self, contents: Mapping[str, bytes]) -> None:
        write_files({self.job.folder / name: content for name, content in contents.items()}, True)


def _content(path: Path) -> bytes:
    try:
        return read_whole(path, None)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"`{path}` cannot be read: {reason}. Start over with `--force`.") from None


def settings_of(job: Job) -> dict[str, Json]:
    """Return what makes a run this one; a run with others ends elsewhere."""
    recipe = {item.name: getattr(job.recipe, item.name) for item in fields(job.recipe)}
    wishes = replace(job.schedule.wishes, method=job.schedule.method, loss_fn=None, fresh=None, sample=None)
    return to_plain(  # type: ignore[no-any-return]
        {
            "checkpoint": job.opened.checkpoint.digest if job.opened.checkpoint else "new",
            "spec": to_json_dict(job.opened.spec),
            "choice of masked weights": digest_of_masks(job.opened.masks or {}),
            "schedule": job.schedule.info.name,
            **{f"schedule {name}": value for name, value in arguments_of(job.schedule).items()},
            **{name: value for name, value in recipe.items() if name not in _NOT_THE_RUN},
            "batch_size": job.samples.batch_size,
            "dtype": job.machine.dtype,
            "seed": job.machine.seed,
            **{f"budget {item.name}": _plain(getattr(wishes, item.name)) for item in fields(wishes)},
        }
    )


def _plain(value: Any) -> Json:
    if isinstance(value, Budget):
        return value.text
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def on_cpu(model: nn.Module, like: nn.Module) -> nn.Module:
    """Return a copy as files hold it: on the CPU, in the precision of the checkpoint, in eval mode."""
    dtypes = {tensor.dtype for tensor in like.parameters() if tensor.is_floating_point()}
    back = clean_copy(model).to("cpu", next(iter(dtypes)) if len(dtypes) == 1 else None)
    return back.to(memory_format=torch.contiguous_format).eval()
