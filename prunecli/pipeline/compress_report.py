"""The story of `compress-report`: files, or a report on disk -> a report in every form, and checks of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunecli.errors import InputError, OutputError, UsageError
from prunecli.export.files import check_free, write_files
from prunecli.export.unfinished import finish_renames
from prunecli.pipeline.comparing import compare_checkpoints
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.report_settings import Gating, Latency, ReportFiles
from prunecli.pipeline.settings import Machine, Samples, Source
from prunecli.report import Report, to_markdown, training_pictures
from prunecli.report.forms import FORMS
from prunecli.report.gates import Gate, Verdict, changes_since, check_gates, needs_baseline, parse_gate
from prunecli.report.sweep import SweepReport
from prunecli.whole_file import read_whole

_SUMMARY = "GITHUB_STEP_SUMMARY"


def read_report(path: str) -> Report:
    """Read a report that `prune` wrote.

    Raises:
        InputError: it is none, or cannot be read.
    """
    if Path(path).suffix != ".json":
        raise InputError(f"`{path}` is no report. Name two checkpoints, A and B, or one report (.json).")
    return Report.from_json(_text_of(path), Path(path).name)


def with_sweep(report: Report, path: str) -> Report:
    """Return the report with the trade-off that a sweep found; `path` is the JSON that `sweep` wrote.

    Raises:
        InputError: it is nothing of that kind, or cannot be read.
    """
    return replace(report, trade_off=SweepReport.from_json(_text_of(path), Path(path).name).trade_off)


def write_pictures(report: Report, folder: str, force: bool = False) -> tuple[Path, ...]:
    """Write what can be drawn of a report as SVG files, and return their paths.

    Raises:
        InputError: the report tells of no training, so there is nothing to draw.
        OutputError: a file is there already, or cannot be written.
    """
    contents = _pictures(report, folder, force)
    write_files(contents, force)
    return tuple(contents)


def _pictures(report: Report, folder: str, force: bool) -> dict[Path, bytes]:
    """Return the content of the files that `write_pictures` writes; it says what that raises."""
    pictures = training_pictures(report.training) if report.training is not None else {}
    if not pictures:
        raise InputError(
            f"`--pictures`: nothing was trained in the report of `{report.title}`. Name one that "
            "`prunecli train`, `finetune` or `prune --steps` wrote."
        )
    contents = {Path(folder) / name: picture.encode() for name, picture in pictures.items()}
    taken = next((path for path in contents if path.exists()), None)
    if taken is not None and not force:
        raise OutputError(f"`{taken}` is there already. Use `--force` to replace it, or name another folder.")
    return contents


def check_summary() -> Path:
    """Return the file that a GitHub job shows as its summary.

    Raises:
        UsageError: this is no such job.
    """
    path = os.environ.get(_SUMMARY)
    if not path:
        raise UsageError(
            f"`--github-summary` adds to the file that `{_SUMMARY}` names, and it is not set here."
        )
    return Path(path)


def append_summary(report: Report, checks: Sequence[str]) -> None:
    """Add a report, with the checks on top, to the summary of a GitHub job.

    Raises:
        UsageError: this is no such job.
        OutputError: the file cannot be written.
    """
    path = check_summary()
    text = "".join(f"- {check}\n" for check in checks)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n{to_markdown(report)}\n" if text else f"{to_markdown(report)}\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"The summary of the job, `{path.name}`, cannot be written: {reason}.") from None


@dataclass(frozen=True)
class Told:
    """A report, what was checked of it, and what was written."""

    report: Report
    verdicts: tuple[Verdict, ...]
    since: tuple[str, ...]
    """What the figures were in the baseline, and are now."""
    files: tuple[Path, ...]
    pictures: tuple[Path, ...]

    @property
    def failed(self) -> int:
        """How many checks do not hold."""
        return sum(not verdict.holds for verdict in self.verdicts)


def compress_report(
    paths: Sequence[str],
    source: Source | None = None,
    samples: Samples | None = None,
    machine: Machine | None = None,
    latency: Latency | None = None,
    files: ReportFiles | None = None,
    gating: Gating | None = None,
    listener: Listener | None = None,
) -> Told:
    """Compare files, or read a report; check it, and write it down. All files are written, or none.

    Args:
        paths: the dense checkpoint and smaller ones, ONNX files too; or one report.
        source: how the model is built.
        samples: overrides of the data in the spec.
        machine: where accuracy and latency are measured.
        latency: whether and how latency is measured.
        files: what is written, and what else is shown.
        gating: what is checked.
        listener: hears of progress.

    Raises:
        UsageError: choices contradict each other, or a check is not written so.
        InputError: a file is bad, or does not match the others.
        OutputError: a file is there already, or cannot be written.
    """
    latency, files, gating = latency or Latency(), files or ReportFiles(), gating or Gating()
    latency.check(len(paths))
    gates = _gates(gating)
    targets = [_target(path) for path in files.out]
    check_free(targets, files.force)
    earlier = read_report(gating.baseline) if gating.baseline is not None else None
    if len(paths) == 1:
        report = read_report(paths[0])
    else:
        timed = latency if latency.latency else None
        report = compare_checkpoints(paths, source, samples, machine, listener or Silent(), timed=timed)
    report = with_sweep(report, files.sweep) if files.sweep is not None else report
    verdicts = check_gates(report, gates, earlier)
    checks = [verdict.text for verdict in verdicts]
    drawn = _pictures(report, files.pictures, files.force) if files.pictures is not None else {}
    forms = {target: FORMS[target.suffix[1:]](report, checks).encode() for target in targets}
    write_files({**forms, **drawn}, files.force)
    if gating.github_summary:
        append_summary(report, checks)
    since = changes_since(report, earlier) if earlier is not None else ()
    return Told(report, verdicts, tuple(since), tuple(targets), tuple(drawn))


def _gates(gating: Gating) -> list[Gate]:
    """Read the checks, before any work starts.

    Raises:
        UsageError: one is not written so, or lacks what it needs.
    """
    gates = [parse_gate(text) for text in gating.fail_if]
    if gating.exit_zero and not gates:
        raise UsageError("`--exit-zero` does nothing without `--fail-if`. Leave it out.")
    following = [gate for gate in gates if gate.step is not None]
    if gating.baseline is None and following:
        raise needs_baseline(following[0])
    if gating.github_summary:
        check_summary()
    return gates


def _target(path: str) -> Path:
    """Return a path to write to, of which the suffix says in what form."""
    suffixes = [f".{form}" for form in FORMS]
    if Path(path).suffix not in suffixes:
        *some, last = suffixes
        raise UsageError(f"`--out {path}`: end it in {', '.join(some)} or {last}.")
    return Path(path)


def _text_of(path: str) -> str:
    finish_renames(Path(path).parent)
    try:
        return read_whole(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not text"
        raise InputError(f"`{path}` cannot be read: {reason.lower()}.") from None
