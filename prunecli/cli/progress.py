"""What a story tells -> standard error: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from prunecli.cli.options import Shown
from prunecli.cli.streams import has_colour, say

SECONDS_BETWEEN_LINES = 5.0


class Reporter:
    """A listener that writes to standard error, as much as the user asked for."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.is_terminal = sys.stderr.isatty()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.stage = ""
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def note(self, text: str) -> None:
        """Write what was decided, unless the user wants to hear nothing."""
        if not self.shown.quiet:
            say(text)

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
        if self.is_terminal:
            self._move_bar(stage, done, total)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            say(f"{stage}: {done}" if total is None else f"{stage}: {done}/{total}")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _move_bar(self, stage: str, done: int, total: int | None) -> None:
        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            console = Console(stderr=True, no_color=not has_colour(True))
            self.bar = Progress(*columns, console=console, transient=True)
            self.bar.start()
        if self.task is None or self.stage != stage:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.stage = self.bar.add_task(stage, total=total), stage
        self.bar.update(self.task, completed=done, total=total)


@contextmanager
def reporting(shown: Shown) -> Iterator[Reporter]:
    """Lend a reporter; warnings of other packages become one line each meanwhile."""
    reporter = Reporter(shown)
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
