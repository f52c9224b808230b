"""A sweep -> CSV with a line per trial, Markdown with a row per method and budget, and words for numbers."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from prunecli.report.numbers import percent
from prunecli.report.points import Point, Spread
from prunecli.report.spreadsheet import csv_text
from prunecli.report.sweep import SweepReport, SweepRow, summarise

_CSV_HEADER = (
    "method", "scope", "budget", "ratio", "seed", "top1", "top5", "loss", "samples", "reached",
    "compression_error", "params", "params_left", "macs", "macs_left", "prunable", "prunable_left",
    "collapsed", "collapsed_layers", "error",
)  # fmt: skip


def sweep_csv(report: SweepReport) -> str:
    """Return one line per trial, numbers in full."""
    return csv_text((_CSV_HEADER, *map(_line, report.rows)))


def _line(row: SweepRow) -> list[object]:
    asked: list[object] = [row.method, row.scope, row.budget, row.ratio, row.seed]
    found = row.figures
    if found is None:
        return [*asked, *[""] * (len(_CSV_HEADER) - len(asked) - 1), row.error]
    accuracy = (found.top1, found.top5, found.loss, found.samples or None)
    changes = (found.params, found.macs, found.pruned)
    cells = [*accuracy, found.reached, row.compression_error]
    cells += [number for change in changes for number in (change.before, change.after)]
    shown = ["" if cell is None else cell for cell in cells]
    return [*asked, *shown, len(found.collapsed), " ".join(found.collapsed), ""]


def sweep_markdown(report: SweepReport) -> str:
    """Return a table with a row per method and budget, and what it is a table of."""
    titles, *rows = sweep_table(report)
    rule = ["---", "---", *["---:"] * (len(titles) - 2)]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in (titles, rule, *rows)]
    notes = "\n".join(f"- {_cell(note)}" for note in sweep_notes(report))
    return f"### Sweep of {_cell(report.title)}\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def sweep_table(report: SweepReport) -> tuple[tuple[str, ...], ...]:
    """Return titles and rows as text; columns of which nothing is known are left out."""
    points = summarise(report.rows)
    columns: list[tuple[str, list[str]]] = [
        ("method", [point.name for point in points]),
        ("budget", [point.budget for point in points]),
    ]
    for title, values, write in (
        ("top-1", [point.top1 for point in points], hits_text),
        ("top-5", [point.top5 for point in points], hits_text),
        ("loss", [point.loss for point in points], loss_text),
        ("r_e", [point.reached for point in points], ratio_text),
        ("error", [point.compression_error for point in points], error_text),
        ("params", [point.params_left for point in points], share_text),
        ("MACs", [point.macs_left for point in points], share_text),
    ):
        if any(value is not None for value in values):
            columns.append((title, [write(value) for value in values]))
    if any(point.collapsed and point.collapsed.mean for point in points):
        columns.append(("collapsed", [collapsed_text(point) for point in points]))
    if any(point.failed for point in points):
        columns.append(
            ("failed", [f"{point.failed}/{point.seeds}" if point.failed else "" for point in points])
        )
    titles = tuple(title for title, _ in columns)
    return (titles, *zip(*(cells for _, cells in columns), strict=True))


def sweep_notes(report: SweepReport) -> list[str]:
    """Return what a reader of the table should know."""
    seeds = len({row.seed for row in report.rows})
    scatter = (
        f"mean ± sample standard deviation over {seeds} seeds"
        if seeds > 1
        else "one seed only: nothing is known of the spread, and small differences mean nothing"
    )
    of_weights = report.granularity == "weight"
    pruned = "weights that are left" if of_weights else "units that are left"
    counted = "" if of_weights else " of what the budget counts (`keep`: units)"
    notes = [
        f"{scatter}; params and MACs are the shares with {pruned}; r_e is the compression reached{counted}, "
        "and error (r - r_e) / r."
    ]
    if seeds > 1 and report.settings.get("start") == "checkpoint" and not report.settings.get("epochs"):
        notes.append("one checkpoint and no training: what draws nothing at random is the same for all seeds")
    sources = (str(report.settings.get(name)) for name in ("sample", "train", "test"))
    if any(source.startswith("random:") for source in sources):
        notes.append("some of the samples are made up: what they are needed for says nothing of real data")
    collapses = [point for point in summarise(report.rows) if point.collapsed_layers]
    for name, points in _by_name(collapses).items():
        layers = dict.fromkeys(layer for point in points for layer in point.collapsed_layers)
        notes.append(f"{name}: at {_budgets(points)} no weight is left in {_listed(tuple(layers))}")
    return [*notes, *failures(report)]


def failures(report: SweepReport) -> list[str]:
    """Return what failed: which methods, at which budgets and why; once for all that failed alike."""
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    failed = [point for point in summarise(report.rows) if point.failed]
    for name, points in _by_name(failed).items():
        for error in dict.fromkeys(str(point.error) for point in points):
            budgets = tuple(point.budget for point in points if str(point.error) == error)
            alike.setdefault((error, budgets), []).append(name)
    return [
        f"{_listed(names)} failed at {_listed(budgets, most=8)}: {error}"
        for (error, budgets), names in alike.items()
    ]


def hits_text(value: Spread | None) -> str:
    """Write an accuracy in percent.

    >>> hits_text(Spread(0.9771, 0.0012, 3)), hits_text(Spread(0.5, None, 1))
    ('97.71 ± 0.12', '50.00')
    """
    return _with_deviation(value, lambda number: f"{100 * number:.2f}")


def loss_text(value: Spread | None) -> str:
    """Write a loss."""
    return _with_deviation(value, lambda number: f"{number:.4f}" if abs(number) < 1e4 else f"{number:.3g}")


def ratio_text(value: Spread | None) -> str:
    """Write a compression; the spread only where there is any.

    >>> ratio_text(Spread(32.0, 0.0, 3)), ratio_text(Spread(16.25, 0.5, 3))
    ('32.00', '16.25 ± 0.50')
    """
    steady = value is not None and (value.deviation or 0) < 0.005
    return "" if value is None else f"{value.mean:.2f}" if steady else _with_deviation(value, "{:.2f}".format)


def error_text(value: Spread | None) -> str:
    """Write a compression error in percent.

    >>> error_text(Spread(-0.00001, None, 1)), error_text(Spread(0.5, 0.1, 2))
    ('0.0%', '50.0%')
    """
    return "" if value is None else f"{100 * value.mean + 0.0:.1f}%".replace("-0.0%", "0.0%")


def share_text(value: Spread | None) -> str:
    """Write what is left of something."""
    return "" if value is None else percent(value.mean)


def collapsed_text(point: Point) -> str:
    """Write how many layers collapsed, on average; nothing where none did."""
    if point.collapsed is None or not point.collapsed.mean:
        return ""
    mean = point.collapsed.mean
    return f"{mean:.0f}" if mean == round(mean) else f"{mean:.1f}"


def _with_deviation(value: Spread | None, write: Callable[[float], str]) -> str:
    if value is None:
        return ""
    mean = write(value.mean)
    return mean if value.deviation is None else f"{mean} ± {write(value.deviation)}"


def _by_name(points: Sequence[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.name, []).append(point)
    return found


def _budgets(points: Sequence[Point]) -> str:
    return _listed([point.budget for point in points], most=8)


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _cell(text: str) -> str:
    """Make a text harmless inside Markdown: names may come from anywhere."""
    safe = html.escape("".join(c if c.isprintable() else " " for c in text), quote=False)
    return "".join(f"\\{c}" if c in "\\`*[]|~" else c for c in safe)
