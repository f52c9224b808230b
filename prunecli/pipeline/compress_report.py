"""The story of `compress-report`: checkpoints and ONNX files, or a report on disk -> a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prunecli.errors import CheckpointError, ExportError, InputError, OutputError, ProofError, UsageError
from prunecli.export.files import write_files
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.measuring import Judge
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.running import Place, running_on
from prunecli.pipeline.settings import Machine, Samples, Source
from prunecli.pipeline.sides import Side, explain, open_all, timed_inputs
from prunecli.pipeline.timing import time_in_turns, torch_runner
from prunecli.pipeline.versions import versions
from prunecli.report import (
    Accuracy,
    ComparedModel,
    Environment,
    LatencyFacts,
    MaskFacts,
    ModelFacts,
    Notice,
    ParityCheck,
    Report,
    Timing,
    compare,
    mask_facts,
    to_markdown,
    training_pictures,
)
from prunecli.report.sweep import SweepReport
from prunecli.strict_json import FieldError, from_plain
from prunecli.weights.masked import kept_counts

ON_CPU = Place(torch.device("cpu"), None)
"""Where onnxruntime runs."""
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


@dataclass(frozen=True)
class Timed:
    """How latency is measured."""

    runs: int = 30
    batch_size: int = 1


def compare_checkpoints(
    paths: Sequence[str],
    source: Source | None = None,
    samples: Samples | None = None,
    machine: Machine | None = None,
    listener: Listener | None = None,
    *,
    timed: Timed | None = None,
) -> Report:
    """Put files side by side: checkpoints, pruned or not, and ONNX files.

    Args:
        paths: the dense one first, the smallest last; checkpoints are built with the spec of the first.
        source: how the model is built.
        samples: overrides of the data in the spec.
        machine: where accuracy and latency are measured.
        listener: hears of progress.
        timed: measure latency so.

    Returns:
        What changed from the first to the last, and figures of each. Scores, training and recovery are those
        that a report beside one of the files tells of.
    """
    source, samples = source or Source(), samples or Samples()
    machine, listener = machine or Machine(), listener or Silent()
    found = open_all(paths, source, samples, listener)
    with running_on(machine, listener) as place:
        models = [_told(one, _accuracy(one, samples, machine, place, listener)) for one in found]
        notices: list[Notice] = []
        if timed is not None:
            models, notices = _timed(found, models, timed, place, listener)
    first, last = found[0], found[-1]
    line = {last.digest, *last.parents.values()}  # a sibling's scores are not those that it was cut by
    told = [one.report for one in reversed(found) if one.digest in line and one.report is not None]
    ours = last.report
    test = first.spec.data.test if first.spec else None
    return compare(
        first.facts,
        last.facts,
        masks=_masks(last.opened, last.facts) if last.opened is not None else None,
        title=" -> ".join(one.name for one in found),
        accuracy=(models[0].accuracy, models[-1].accuracy),
        parity=_parity(last.opened) if last.opened is not None else (),
        recovery=ours.recovery if ours else None,
        training=ours.training if ours else None,
        scores=next((report.scores for report in told if report.scores), None),
        models=models,
        latency=_latency_facts(timed, place) if timed is not None else None,
        settings=last.method,
        random_data=(test or "").startswith("random:"),
        warnings=[*_strangers(models), *notices],
        environment=Environment(place.device.type, versions()),
    )


def _strangers(models: Sequence[ComparedModel]) -> Iterator[Notice]:
    """Yield a notice of each file that says where it came from, and that is not from the first one."""
    first = models[0]
    for model in models[1:]:
        if model.parents and first.sha256 not in model.parents.values():
            yield Notice(
                "lineage",
                f"{model.name} was not made from this {first.name}: it names {', '.join(model.parents)} "
                f"with {'other digests' if len(model.parents) > 1 else 'another digest'}.",
            )


def _told(one: Side, accuracy: Accuracy | None) -> ComparedModel:
    return ComparedModel(
        name=one.name,
        read_as=one.read_as,
        sha256=one.digest,
        file_bytes=one.bytes,
        facts=one.facts,
        accuracy=accuracy,
        method=one.method,
        parents=one.parents,
    )


def _accuracy(
    one: Side, samples: Samples, machine: Machine, place: Place, listener: Listener
) -> Accuracy | None:
    """Measure a model on test data, where it is known; ONNX files run on the CPU."""
    if one.spec is None or one.spec.data.test is None:
        return None
    if one.opened is not None:
        return Judge(one.opened, samples, machine, place, listener).accuracy(
            one.opened.model, f"accuracy of {one.name}"
        )
    model = one.in_onnxruntime(torch.get_num_threads())
    judge = Judge(Opened(one.name, one.spec, model), samples, machine, ON_CPU, listener)
    return judge.accuracy(model, f"accuracy of {one.name}")


def _timed(
    found: Sequence[Side],
    models: Sequence[ComparedModel],
    timed: Timed,
    place: Place,
    listener: Listener,
) -> tuple[list[ComparedModel], list[Notice]]:
    """Return the models with their latencies, and notices of what could not be timed."""
    notices: list[Notice] = []
    threads = torch.get_num_threads()
    runners: dict[tuple[str, int], Callable[[], object]] = {}
    for i, one in enumerate(found):
        if one.opened is not None:
            lent = place.lend(one.opened.model)
            inputs = timed_inputs(one, lent, timed.batch_size)
            runners["pytorch", i] = torch_runner(lent, inputs, place.device)
        listener.note(f"{one.name}: preparing it for onnxruntime")
        try:
            session = one.in_onnxruntime(threads)
        except (CheckpointError, ExportError, ProofError) as error:
            notices.append(Notice("latency", f"{one.name}: no latency in onnxruntime. {explain(error)}"))
            continue
        inputs = timed_inputs(one, session, timed.batch_size)
        runners["onnxruntime", i] = torch_runner(session, inputs, ON_CPU.device)
    times: dict[tuple[str, int], Timing] = {}
    for runtime in ("pytorch", "onnxruntime"):
        own = [key for key in runners if key[0] == runtime]
        times |= zip(own, time_in_turns([runners[key] for key in own], timed.runs, listener), strict=True)
    return [
        replace(model, pytorch=times.get(("pytorch", i)), onnxruntime=times.get(("onnxruntime", i)))
        for i, model in enumerate(models)
    ], notices


def _latency_facts(timed: Timed, place: Place) -> LatencyFacts:
    return LatencyFacts(timed.batch_size, timed.runs, place.device.type, torch.get_num_threads())


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not text"
        raise InputError(f"`{path}` cannot be read: {reason.lower()}.") from None


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
