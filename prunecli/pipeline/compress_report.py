"""The story of `compress-report`: two checkpoints, or a report on disk -> a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prunecli.costs import describe
from prunecli.errors import CheckpointError, InputError, OutputError, UsageError
from prunecli.export.files import write_files
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.measuring import Judge
from prunecli.pipeline.opening import Opened, open_model
from prunecli.pipeline.running import running_on
from prunecli.pipeline.settings import Machine, Samples, Source
from prunecli.pipeline.versions import versions
from prunecli.report import (
    Environment,
    MaskFacts,
    ModelFacts,
    ParityCheck,
    Report,
    WrittenFile,
    compare,
    mask_facts,
    to_markdown,
    training_pictures,
)
from prunecli.strict_json import FieldError, from_plain
from prunecli.weights.masked import kept_counts

_SUMMARY = "GITHUB_STEP_SUMMARY"


def read_report(path: str) -> Report:
    """Read a report that `prune` wrote.

    Raises:
        InputError: it is none, or cannot be read.
    """
    file = Path(path)
    if file.suffix != ".json":
        raise InputError(f"`{path}` is no report. Name two checkpoints, A and B, or one report (.json).")
    try:
        return Report.from_json(file.read_text(encoding="utf-8"), file.name)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not text"
        raise InputError(f"`{path}` cannot be read: {reason.lower()}.") from None


def write_pictures(report: Report, folder: str, force: bool = False) -> tuple[Path, ...]:
    """Write what can be drawn of a report as SVG files, and return their paths.

    Raises:
        InputError: the report tells of no training, so there is nothing to draw.
        OutputError: a file is there already, or cannot be written.
    """
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
    write_files(contents, force)
    return tuple(contents)


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


def compare_checkpoints(
    before: str,
    after: str,
    source: Source | None = None,
    samples: Samples | None = None,
    machine: Machine | None = None,
    listener: Listener | None = None,
) -> Report:
    """Put two checkpoints side by side; accuracy too where the spec names test data.

    Args:
        before: the dense checkpoint.
        after: the pruned one. If prunecli wrote it, it is rebuilt with the spec of the dense one.
        source: how the model is built.
        samples: overrides of the data in the spec.
        machine: where accuracy is measured.
        listener: hears of progress.
    """
    source, samples = source or Source(), samples or Samples()
    machine, listener = machine or Machine(), listener or Silent()
    dense = open_model(before, source, samples, listener)
    small = open_model(after, source, samples, listener, spec=dense.spec)
    with running_on(machine, listener) as place:
        measure = Judge(dense, samples, machine, place, listener).accuracy
        accuracy = (measure(dense.model, "accuracy before"), measure(small.model, "accuracy after"))
    file = small.file
    facts = describe(small.model, *dense.example)
    return compare(
        describe(dense.model, *dense.example),
        facts,
        masks=_masks(small, facts),
        title=f"{dense.name} -> {small.name}",
        accuracy=accuracy,
        parity=_parity(small),
        files=[WrittenFile(small.name, file.bytes, file.digest)],
        settings=dict(small.record.method) if small.record else {},
        random_data=(dense.spec.data.test or "").startswith("random:"),
        environment=Environment(place.device.type, versions()),
    )


def _masks(opened: Opened, facts: ModelFacts) -> MaskFacts | None:
    """Return what is left of the weights, where the file says that some were pruned one by one."""
    if opened.masks is None or opened.record is None:
        return None
    asked = opened.record.method
    name, _, ratio = str(asked.get("budget", "")).partition("=")
    return mask_facts(
        kept_counts(opened.masks),
        facts,
        ratio=float(ratio) if name == "ratio" and "granularity" in asked else None,
        base=str(asked.get("ratio_base", "whole")),
        pattern=str(asked["pattern"]) if "pattern" in asked else None,
    )


def _parity(opened: Opened) -> tuple[ParityCheck, ...]:
    """Return the proof that the file carries."""
    checks = (opened.record.parity if opened.record else None) or ()
    try:
        return tuple(from_plain(ParityCheck, check) for check in checks)
    except FieldError as error:
        raise CheckpointError(f"`{opened.file.path}`: metadata field parity {error}.") from None
