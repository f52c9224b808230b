"""What a story tells -> standard error: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prunecli.cli.options import Said
from prunecli.cli.streams import has_colour, plain, say
from prunecli.pipeline.processes import started

if TYPE_CHECKING:
    from prunecli.history import EpochRow
    from prunecli.training import Tick

SECONDS_BETWEEN_LINES = 5.0
SECONDS_OF_SPEED = 20.0
"""Training speed is measured over so many seconds."""

_TRAINING = "training"
_BAR_AND_TIMES = 28
"""What a line needs beside its text: a short bar, the time gone by and the time left."""


class Reporter:
    """A listener that writes to standard error, as much as the user asked for."""

    def __init__(self, shown: Said) -> None:
        self.shown = shown
        self.is_terminal = sys.stderr.isatty()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.stage = ""
        self.phase = ""
        self.rate: float | None = None
        """Samples per second, as last measured."""
        self.speed: list[tuple[int, float, int]] = []
        """(epoch, time, samples done in it), over the last seconds."""
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def note(self, text: str) -> None:
        """Write what was decided, unless the user wants to hear nothing."""
        if not self.shown.quiet:
            say(text)
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def detail(self, text: str) -> None:
        """Write what only a user who asks wants to know."""
        if self.shown.verbose:
            say(text)

    def warn(self, text: str) -> None:
        """Write a warning; no option hides it."""
        say(f"warning: {text}")

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Move the bar, or write a line if the last one is some seconds old."""
        if self.shown.quiet:
            return
        if self.is_terminal and self.stage == _TRAINING:  # which goes on after this
            self._label(stage if total is None else f"{stage} {done}/{total}")
        elif self.is_terminal:
            self._move_bar(stage, stage if total is None else f"{stage} {done}/{total}", done, total)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            say(f"{stage}: {done}/{total}" if total is not None else f"{stage}: {done}" if done else stage)

    def tick(self, tick: Tick) -> None:
        """Show how far training is: a bar on a terminal, else a line every few seconds."""
        if self.shown.quiet:
            return
        self.rate = self._images_per_second(tick) or self.rate
        parts = [_epoch(tick.epoch, tick.epochs), f"loss {_loss(tick.loss)}"]
        parts += [f"top-1 {_percent(tick.top1)}"] if tick.top1 is not None else []
        parts += [f"{self.rate:>7,.0f}/s" if self.rate is not None else " " * 9]
        if self.is_terminal:
            done = (tick.epoch - 1) * tick.batches + tick.batch
            text = self._fitting(parts)
            self._move_bar(_TRAINING, text, done, tick.epochs * tick.batches)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            say(f"{'  '.join(parts).rstrip()}  ({tick.batch}/{tick.batches})")

    def epoch(self, row: EpochRow, epochs: int) -> None:
        """Write one line about an epoch that is over."""
        if self.shown.quiet:
            return
        if row.phase not in (self.phase, _TRAINING):
            self._print(f"{row.phase}:")
        self.phase = row.phase
        parts = [_epoch(row.epoch, epochs), f"loss {_loss(row.loss)}"]
        parts += [f"top-1 {_percent(row.top1)}"] if row.top1 is not None else []
        if row.test_top1 is not None:
            parts.append(f"test {_percent(row.test_top1)}")
        elif row.test_loss is not None:
            parts.append(f"test loss {_loss(row.test_loss)}")
        parts += [f"units {row.units:,}"] if row.units is not None else []
        if row.total_density is not None:  # which leaves no room for the rate in 80 columns
            parts.append(f"density {row.total_density:.3f}")
        else:
            parts.append(f"lr {row.rate:.2g}")
        self._print("\n".join(("  ".join(parts), *(f"  {note}" for note in row.notes))))
        if row.epoch >= epochs:
            self._end_stage()
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _print(self, text: str) -> None:
        """Write a line that stays; above the bar, where there is one."""
        if self.bar is None:
            say(text)
        else:
            self.bar.console.print(plain(text), markup=False, highlight=False)

    def _images_per_second(self, tick: Tick) -> float | None:
        """Return how fast training was over the last seconds; it starts anew in each epoch."""
        now = time.monotonic()
        if not self.speed or self.speed[-1][0] != tick.epoch:
            self.speed = [(tick.epoch, now, tick.samples)]
            return None
        self.speed = [mark for mark in self.speed if now - mark[1] < SECONDS_OF_SPEED][-100:] or self.speed[
            -1:
        ]
        _, since, samples = self.speed[0]
        self.speed.append((tick.epoch, now, tick.samples))
        return (tick.samples - samples) / (now - since) if now > since else None

    def _move_bar(self, stage: str, text: str, done: int, total: int | None) -> None:
        """Show a stage; a new one starts with an empty bar."""
        bar = self._started_bar()
        if self.task is None or self.stage != stage:
            self._end_stage()
            self.task, self.stage = bar.add_task(text, total=total), stage
        bar.update(self.task, completed=done, total=total, description=text)

    def _label(self, text: str) -> None:
        """Write another text before the bar, which stays where it is."""
        if self.bar is not None and self.task is not None:
            width = len(self.bar.tasks[0].description)
            self.bar.update(self.task, description=f"{text:{width}}")

    def _end_stage(self) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.remove_task(self.task)
        self.task, self.stage = None, ""

    def _started_bar(self) -> Progress:
        if self.bar is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            console = Console(stderr=True, no_color=not has_colour(True))
            self.bar = Progress(*columns, console=console, transient=True)
            self.bar.start()
        return self.bar

    def _fitting(self, parts: list[str]) -> str:
        """Return what fits beside the bar; the last parts go first."""
        room = self._started_bar().console.width - _BAR_AND_TIMES
        while len(parts) > 1 and len("  ".join(parts)) > room:
            parts = parts[:-1]
        return "  ".join(parts)


class _Unheard(Reporter):
    """Writes nothing."""

    def __init__(self, shown: Said) -> None:
        super().__init__(replace(shown, quiet=True, verbose=False))

    def warn(self, text: str) -> None:
        """Write nothing: another process has the same to say."""


def _epoch(number: int, count: int) -> str:
    """Return how far a run is, as wide in the first epoch as in the last.

    >>> _epoch(3, 40)
    'epoch  3/40'
    """
    return f"epoch {number:>{len(str(count))}}/{count}"


def _percent(share: float) -> str:
    """Return a share of 1 in a fixed width.

    >>> _percent(0.985)
    ' 98.50 %'
    """
    return f"{100 * share:6.2f} %"


@contextmanager
def reporting(shown: Said) -> Iterator[Reporter]:
    """Lend a reporter; warnings of other packages become one line each meanwhile.

    Of several processes that share the work, the first one speaks for all.
    """
    reporter = Reporter(shown) if started().is_first else _Unheard(shown)
    with warnings.catch_warnings():
        if not shown.debug:
            _one_line_each(reporter)
        try:
            yield reporter
        finally:
            reporter.close()


def _one_line_each(reporter: Reporter) -> None:
    """Show what a user can act on: UserWarnings, without file and line; the rest only with `-v`."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        text = " ".join(str(message).split())
        (reporter.warn if issubclass(category, UserWarning) else reporter.detail)(text)

    warnings.simplefilter("default" if reporter.shown.verbose else "once", UserWarning)
    warnings.showwarning = show  # type: ignore[assignment]


def _loss(value: float) -> str:
    """Write a loss; one that exploded in a few digits.

    >>> _loss(0.25), _loss(6.8e18)
    ('0.2500', '6.8e+18')
    """
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"
