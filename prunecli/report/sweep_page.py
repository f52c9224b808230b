"""A sweep -> one HTML page: curves and tables, light and dark, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunecli.report.html import ROOM, Cell, facts, figure, listed, name_of, table, whole_page, words
from prunecli.report.points import Point
from prunecli.report.svg import inline
from prunecli.report.sweep import SweepReport, summarise
from prunecli.report.sweep_pictures import sweep_picture
from prunecli.report.sweep_text import hits_text, loss_text, sweep_notes, sweep_table

MOST_ROWS = 600
"""Of the long table; the CSV has them all."""

_ROOM = 150_000
_PRUNED = {"unit": "Pruning of whole units", "weight": "Pruning of single weights"}


def sweep_page(report: SweepReport) -> str:
    """Return the page; every text in it is escaped."""
    points = summarise(report.rows)
    seeds = len({row.seed for row in report.rows})
    methods = len({point.name for point in points})
    budgets = len({point.budget for point in points})
    counts = (_count(methods, "method"), _count(budgets, "budget"), _count(seeds, "seed"))
    parts = [
        '<p class="eyebrow">Sweep</p>',
        f"<h1>{name_of(report.title)}</h1>",
        f'<p class="lead">{_PRUNED.get(report.granularity, "Pruning")}: {", ".join(counts)}.</p>',
        f"<figure>{inline(sweep_picture(report.trade_off))}</figure>",
        *by_budget(points),
        *_all_points(report),
        "<h2>Notes</h2>",
        *listed(map(words, sweep_notes(report))),
        *facts("Settings", report.settings),
        *facts("Environment", _environment(report)),
    ]
    return whole_page(f"Sweep of {report.title}", parts)


def by_budget(points: Sequence[Point]) -> Iterator[str]:
    """Yield a row per method and a column per budget; what is best at a budget stands out."""
    has_hits = any(point.top1 for point in points)
    if not has_hits and not any(point.loss for point in points):
        return
    budgets = list(dict.fromkeys(point.budget for point in points))
    found = {(point.name, point.budget): point.top1 if has_hits else point.loss for point in points}
    best = {}
    for budget in budgets:
        means = [value.mean for (_, own), value in found.items() if own == budget and value]
        best[budget] = (max(means) if has_hits else min(means)) if means else None
    title = f"{'Accuracy (top-1, %)' if has_hits else 'Loss'} by method and budget"
    write = hits_text if has_hits else loss_text
    rows = []
    for name in dict.fromkeys(point.name for point in points):
        row: list[Cell | str] = [name]
        for budget in budgets:
            value = found.get((name, budget))
            is_best = value is not None and value.mean == best[budget]
            row.append(Cell(write(value), value.mean, is_best=is_best) if value else "")
        rows.append(row)
    yield f"<h3>{title}</h3>"
    yield from table(["method", *budgets], rows, title, 2 * ROOM)


def _all_points(report: SweepReport) -> Iterator[str]:
    titles, *rows = sweep_table(report)
    yield "<details open><summary>All figures</summary>"
    cells = [list(map(figure, row)) for row in rows[:MOST_ROWS]]
    yield from table(titles, cells, "All figures", _ROOM)
    if len(rows) > MOST_ROWS:
        yield f"<p>{len(rows) - MOST_ROWS:,} more rows are in the CSV and the JSON.</p>"
    yield "</details>"


def _environment(report: SweepReport) -> dict[str, object]:
    found = report.environment
    return {"device": found.device, **found.versions} if found is not None else {}


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
