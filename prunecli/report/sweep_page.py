"""A sweep -> one HTML page: curves and tables, light and dark, without scripts or anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from prunecli.report.sweep import Point, SweepReport, summarise
from prunecli.report.sweep_pictures import sweep_picture
from prunecli.report.sweep_text import hits_text, loss_text, sweep_notes, sweep_table

MOST_ROWS = 600
"""Of the long table; the CSV has them all."""

_PRUNED = {"unit": "Pruning of whole units", "weight": "Pruning of single weights"}
_STYLE = """
:root{color-scheme:light dark;--ground:#fcfcfb;--ink:#0b0b0b;--soft:#52514e;--line:#e6e5df;--best:#dcebfb}
@media (prefers-color-scheme:dark){:root{--ground:#1a1a19;--ink:#fff;--soft:#c3c2b7;--line:#333330;
--best:#17406f}}
body{margin:0 auto;max-width:64rem;padding:1rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p,li,dd,dt{color:var(--soft);overflow-wrap:anywhere}
figure{margin:1rem 0;overflow-x:auto}svg{max-width:100%;height:auto;min-width:34rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}th{font-weight:600}
td.best{background:var(--best)}summary{cursor:pointer;margin:1rem 0 .5rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dd{margin:0}
"""


def sweep_page(report: SweepReport) -> str:
    """Return the page; every text in it is escaped."""
    points = summarise(report.rows)
    seeds = len({row.seed for row in report.rows})
    methods = len({point.name for point in points})
    budgets = len({point.budget for point in points})
    counts = (_count(methods, "method"), _count(budgets, "budget"), _count(seeds, "seed"))
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>Sweep of {escape(report.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Sweep of {escape(report.title)}</h1>",
        f"<p>{_PRUNED.get(report.granularity, 'Pruning')}: {', '.join(counts)}.</p>",
        f"<figure>{sweep_picture(report)}</figure>",
        *_by_budget(points),
        *_all_points(report),
        "<h2>Notes</h2><ul>",
        *(f"<li>{escape(note)}</li>" for note in sweep_notes(report)),
        "</ul>",
        *_facts("Settings", report.settings),
        *_facts("Environment", _environment(report)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _by_budget(points: Sequence[Point]) -> Iterator[str]:
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
    what = "Accuracy (top-1, %)" if has_hits else "Loss"
    yield f"<h2>{what} by method and budget</h2>"
    head = "".join(f"<th>{escape(budget)}</th>" for budget in budgets)
    yield f'<div class="wide"><table><thead><tr><th>method</th>{head}</tr></thead><tbody>'
    write = hits_text if has_hits else loss_text
    for name in dict.fromkeys(point.name for point in points):
        cells = []
        for budget in budgets:
            value = found.get((name, budget))
            mark = ' class="best"' if value and value.mean == best[budget] else ""
            cells.append(f"<td{mark}>{escape(write(value)) or '&ndash;'}</td>")
        yield f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _all_points(report: SweepReport) -> Iterator[str]:
    titles, *rows = sweep_table(report)
    yield "<details open><summary>All figures</summary>"
    yield '<div class="wide"><table><thead><tr>' + "".join(f"<th>{escape(each)}</th>" for each in titles)
    yield "</tr></thead><tbody>"
    for row in rows[:MOST_ROWS]:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</tbody></table></div>"
    if len(rows) > MOST_ROWS:
        yield f"<p>{len(rows) - MOST_ROWS:,} more rows are in the CSV and the JSON.</p>"
    yield "</details>"


def _facts(title: str, values: Mapping[str, object]) -> Iterator[str]:
    if values:
        yield f"<h2>{title}</h2><dl>"
        yield from (
            f"<dt>{escape(name)}</dt><dd>{escape(_shown(value))}</dd>" for name, value in values.items()
        )
        yield "</dl>"


def _environment(report: SweepReport) -> dict[str, object]:
    found = report.environment
    return {"device": found.device, **found.versions} if found is not None else {}


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_shown(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return str(value)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
