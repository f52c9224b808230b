"""The files that a report compares -> side by side, their latency, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunecli.report.html import Cell, figure, listed, name_of, shown, table, words
from prunecli.report.models_text import measured_text, models_table, units_of_all
from prunecli.report.numbers import human_bytes, milliseconds, percent
from prunecli.report.values import ComparedModel, Report

_ROOM = 20_000
_TO = "\N{RIGHTWARDS ARROW}"
_DIGEST = 12
"""How many letters of a digest tell files apart."""


def comparison_section(report: Report) -> Iterator[str]:
    """Yield a column per file, and the widths on the way; two files are compared by the report itself."""
    if len(report.models) < 3:
        return
    yield "<h2>Models compared</h2>"
    titles, *rows = models_table(report)
    yield from table(titles, [list(map(figure, row)) for row in rows], "Models compared", _ROOM)
    if widths := units_of_all(report):
        yield "<h3>Units on the way</h3>"
        lines = [(name or "(root)", text.replace("->", _TO)) for name, text in widths.items()]
        yield from table(["layer", "units"], lines, "Units on the way", _ROOM)


def latency_section(report: Report) -> Iterator[str]:
    """Yield the quartiles of each file in each runtime; nothing where nothing was timed."""
    timed = [
        (model, runtime, timing)
        for model in report.models
        for runtime, timing in (("PyTorch", model.pytorch), ("onnxruntime", model.onnxruntime))
        if timing is not None
    ]
    if not timed:
        return
    yield "<h2>Latency</h2>"
    if report.latency:
        text = measured_text(report.latency)
        yield f"<p>{words(text[0].upper() + text[1:])}. onnxruntime is on the CPU.</p>"
    titles = ["model", "runtime", "median", "lower quartile", "upper quartile", "of the first"]
    rows: list[list[Cell | str]] = []
    for model, runtime, timing in timed:
        times = [Cell(milliseconds(each), each) for each in (timing.median, timing.low, timing.high)]
        rows.append([model.name, runtime, *times, Cell(percent(timing.ratio), timing.ratio)])
    yield from table(titles, rows, "Latency", texts=(0, 1))


def lineage_section(report: Report) -> Iterator[str]:
    """Yield which files these are, what they were made from, and how."""
    if not report.models and not report.files:
        return
    yield "<h2>Files</h2>"
    yield from listed(_origins(report.models))
    written = (
        f"{name_of(file.name)}, {human_bytes(file.size)}, <code>{name_of(file.sha256[:_DIGEST])}</code>"
        for file in report.files
    )
    yield from listed(written)


def _origins(models: Sequence[ComparedModel]) -> Iterator[str]:
    for model in models:
        line = f"{name_of(model.name)}, read as {name_of(model.read_as)}, {human_bytes(model.file_bytes)}, "
        line += f"<code>{name_of(model.sha256[:_DIGEST])}</code>"
        parents = [
            f"{name_of(name)} <code>{name_of(digest[:_DIGEST])}</code>"
            for name, digest in list(model.parents.items())[:10]
        ]
        if parents:
            line += f"; made from {', '.join(parents)}"
        if model.method:
            line += f"; by {words(shown(model.method))}"
        yield line
