"""The files compared -> the rows of a table and lines of text, for people."""

from __future__ import annotations

from collections.abc import Iterator

from prunecli.report.numbers import human, human_bytes, milliseconds, percent
from prunecli.report.values import Change, ComparedModel, LatencyFacts, Report, Timing


def models_table(report: Report) -> tuple[tuple[str, ...], ...]:
    """Return a row per file, the titles first, without columns that are empty throughout."""
    titles = (
        "file",
        "params",
        "MACs",
        "file size",
        "peak act.",
        "PyTorch",
        "onnxruntime",
        "top1",
        "top5",
        "loss",
    )
    rows = [_row(model) for model in report.models]
    used = [column for column in range(len(titles)) if any(row[column] for row in rows)]
    return tuple(tuple(row[column] for column in used) for row in (titles, *rows))


def units_of_all(report: Report) -> dict[str, str]:
    """Write the units of each layer in all the files, where there are more than two: `64 -> 32 -> 32`."""
    if len(report.models) < 3:
        return {}
    known = [{layer.name: layer.units for layer in model.facts.layers} for model in report.models]
    names = dict.fromkeys(name for each in known for name in each)
    found = {name: [each.get(name) for each in known] for name in names}
    return {
        name: " -> ".join("-" if units is None else str(units) for units in each)
        for name, each in found.items()
        if any(units is not None for units in each)
    }


def memory_lines(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what became of the files' sizes and of the memory for activations, with a label each."""
    totals = report.totals
    if totals.file_bytes is not None:
        yield "file", _bytes(totals.file_bytes)
    if report.models and totals.peak_activation_bytes is not None:
        yield "memory", f"{_bytes(totals.peak_activation_bytes)} of activations at the peak, for one sample"


def latency_text(report: Report) -> str:
    """Write how long the first and the last model take in each runtime; empty where none was timed."""
    if report.latency is None or not report.models:
        return ""
    first, last = report.models[0], report.models[-1]
    runtimes = (
        ("PyTorch", first.pytorch, last.pytorch),
        ("onnxruntime", first.onnxruntime, last.onnxruntime),
    )
    parts = []
    for name, old, new in runtimes:
        if old is not None and new is not None:
            times = f"{milliseconds(old.median).removesuffix(' ms')} -> {milliseconds(new.median)}"
            parts.append(f"{name} {times} ({percent(new.ratio)})")
        elif (only := old or new) is not None:
            parts.append(f"{name} {milliseconds(only.median)} ({(first if old else last).name} alone)")
    return "; ".join([*parts, measured_text(report.latency)])


def lineage_lines(report: Report) -> Iterator[str]:
    """Yield what each file says it was made from, and which of the files here that is."""
    here = {model.sha256: model.name for model in report.models}
    for model in report.models:
        parents = [
            f"{here[digest]} (here)" if digest in here else f"{name} (sha256 {digest[:12]})"
            for name, digest in model.parents.items()
        ]
        if parents:
            yield f"{model.name} was made from {', '.join(parents)}"


def measured_text(facts: LatencyFacts) -> str:
    """Write how latency was measured.

    >>> measured_text(LatencyFacts(1, 30, "cpu", 2))
    'batch 1, medians of 30 runs in turns, compared run by run, cpu, 2 threads'
    """
    threads = f"{facts.threads} thread{'s' * (facts.threads != 1)}"
    runs = (
        f"medians of {facts.runs} runs in turns, compared run by run" if facts.runs != 1 else "a single run"
    )
    return f"batch {facts.batch_size}, {runs}, {facts.device}, {threads}"


def _row(model: ComparedModel) -> tuple[str, ...]:
    facts, accuracy = model.facts, model.accuracy
    peak = facts.peak_activation_bytes
    return (
        model.name,
        human(facts.params),
        human(facts.macs),
        human_bytes(model.file_bytes),
        "" if peak is None else human_bytes(peak),
        _milliseconds(model.pytorch),
        _milliseconds(model.onnxruntime),
        _share(accuracy.top1 if accuracy else None),
        _share(accuracy.top5 if accuracy else None),
        "" if accuracy is None or accuracy.loss is None else f"{accuracy.loss:.4f}",
    )


def _milliseconds(timing: Timing | None) -> str:
    return "" if timing is None else f"{milliseconds(timing.median)} ({percent(timing.ratio)})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def _bytes(change: Change) -> str:
    return f"{human_bytes(change.before)} -> {human_bytes(change.after)} ({percent(change.ratio)} left)"
