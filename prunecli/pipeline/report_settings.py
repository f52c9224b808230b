"""What a user of `compress-report` can choose, in groups, with the defaults. See `settings`."""

from __future__ import annotations

from dataclasses import dataclass

from prunecli.errors import UsageError


@dataclass(frozen=True)
class Latency:
    """Whether and how latency is measured."""

    latency: bool = False
    latency_runs: int | None = None
    """None: 30."""
    latency_batch: int | None = None
    """None: 1."""

    @property
    def runs(self) -> int:
        """How often each model runs."""
        return self.latency_runs or 30

    @property
    def batch(self) -> int:
        """How many samples it gets each time."""
        return self.latency_batch or 1

    def check(self, files: int) -> None:
        """Make sure that what is asked for can be measured, and that nothing idle is asked for.

        Raises:
            UsageError: it cannot, or something is.
        """
        if not self.latency and (self.latency_runs or self.latency_batch):
            name = "--latency-runs" if self.latency_runs else "--latency-batch"
            raise UsageError(f"`{name}` does nothing without `--latency`. Say that too, or leave it out.")
        if self.latency and files == 1:
            raise UsageError("`--latency` measures models: name their files, not a report.")


@dataclass(frozen=True)
class ReportFiles:
    """What `compress-report` writes, and what else it shows."""

    out: tuple[str, ...] = ()
    pictures: str | None = None
    sweep: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Gating:
    """What is checked of a report."""

    fail_if: tuple[str, ...] = ()
    baseline: str | None = None
    exit_zero: bool = False
    github_summary: bool = False
