"""A report -> one HTML page: figures, bars, tables, curves; light, dark and on paper, by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

from prunecli.history import EpochRow
from prunecli.report.boxes import MOST_GROUPS, draw_boxes
from prunecli.report.headline import cards, draw_cards, verdict
from prunecli.report.html import Cell, facts, figure, listed, name_of, table, whole_page, words
from prunecli.report.masks import mask_lines
from prunecli.report.numbers import percent
from prunecli.report.page_layers import layer_section
from prunecli.report.page_models import comparison_section, latency_section, lineage_section
from prunecli.report.pictures import training_pictures
from prunecli.report.svg import harmless, inline
from prunecli.report.sweep_page import by_budget
from prunecli.report.sweep_pictures import sweep_picture
from prunecli.report.text import onnx_text, parity_text, recovery_text
from prunecli.report.training_text import figure_lines, phase_notes, phase_table, training_text
from prunecli.report.values import Report, TrainingFacts

_ROOM = 285_000
"""How many letters the page may take, but for its look and its script; layers have what others leave."""
_PICTURE_ROOM = 24_000
"""How many letters a picture may take."""
_CAPTIONS = {"colormap.svg": "At the end of each stretch"}
_OK = "ok"


def report_page(report: Report, checks: Sequence[str] = ()) -> str:
    """Return the page, under 300 KiB however large the report is; every text in it is escaped.

    Args:
        report: What is shown; a section appears where there is something to say.
        checks: The verdicts of gates, a line each, as `Verdict.text` writes them.
    """
    above = [
        '<p class="eyebrow">Compression report</p>',
        f"<h1>{name_of(report.title.replace(' -> ', ' → '))}</h1>",
        f'<p class="lead">{words(verdict(report))}</p>',
        *draw_cards(cards(report)),
        *_checks(checks),
        *_warnings(report),
    ]
    below = [
        *comparison_section(report),
        *latency_section(report),
        *_scores(report),
        *_training(report.training),
        *_recovery(report),
        *_masks(report),
        *_trade_off(report),
        *_proof(report),
        *lineage_section(report),
        *facts("Settings", report.settings),
        *facts("Environment", _environment(report)),
    ]
    room = _ROOM - sum(len(part.encode()) + 1 for part in (*above, *below))
    return whole_page(f"{report.title}: compression report", [*above, *layer_section(report, room), *below])


def _checks(checks: Sequence[str]) -> Iterator[str]:
    if checks:
        yield "<h2>Checks</h2>"
        yield from listed(map(_check, checks), kind="checks")


def _check(check: str) -> str:
    state, _, rest = check.partition(":")
    kind = "good" if state == _OK else "bad"
    return f'<li class="{kind}"><b>{harmless(state)}</b>{":" if rest else ""}{words(rest)}</li>'


def _warnings(report: Report) -> Iterator[str]:
    if report.warnings:
        yield "<h2>Warnings</h2>"
        yield from listed((words(notice.text) for notice in report.warnings), kind="warnings")


def _scores(report: Report) -> Iterator[str]:
    if report.scores is None or not report.scores.groups:
        return
    groups = len(report.scores.groups)
    yield f"<h2>Scores by {name_of(report.scores.method)}</h2>"
    text = (
        "Further right is more important. Boxes reach from quartile to quartile, the median is a stroke, and "
        "lines reach to the extremes."
    )
    if groups > MOST_GROUPS:
        text += f" The first {MOST_GROUPS} of {groups:,} groups are drawn."
    yield f"<figure><figcaption>{text}</figcaption>{draw_boxes(report.scores)}</figure>"


def _training(training: TrainingFacts | None) -> Iterator[str]:
    if training is None:
        return
    yield f"<h2>Training</h2><p>{words(training_text(training))}</p>"
    notes = [words(f"{name}: {value}") for name, value in figure_lines(training)]
    yield from listed([*notes, *map(words, phase_notes(training))])
    for name, picture in training_pictures(training).items():
        yield from _picture(training, name, picture)
    titles, *rows = phase_table(training)
    yield from table(titles, [list(map(figure, row)) for row in rows], "Stretches of training")


def _picture(training: TrainingFacts, name: str, picture: str) -> Iterator[str]:
    """Yield a picture, with fewer epochs where all do not fit; none, and why, where a few do not either."""
    step = 1
    while len(picture.encode()) > _PICTURE_ROOM and step < len(training.rows):
        step *= max(2, ceil(len(picture.encode()) / _PICTURE_ROOM))
        picture = training_pictures(replace(training, rows=_thinned(training.rows, step)))[name]
    if len(picture.encode()) > _PICTURE_ROOM:
        yield f"<p>{name} is too large for this page; <code>--pictures FOLDER</code> draws it.</p>"
        return
    text = f"One epoch of {step} is drawn." if step > 1 else _CAPTIONS.get(name)
    caption = f"<figcaption>{text}</figcaption>" if text else ""
    yield f"<figure>{caption}{inline(picture)}</figure>"


def _thinned(rows: Sequence[EpochRow], step: int) -> tuple[EpochRow, ...]:
    """Return every so many rows, and the last of each phase."""
    following = [*(row.phase for row in rows[1:]), None]
    return tuple(
        row
        for number, (row, phase) in enumerate(zip(rows, following, strict=True))
        if number % step == 0 or row.phase != phase
    )


def _recovery(report: Report) -> Iterator[str]:
    recovery = report.recovery
    if recovery is None:
        return
    yield f"<h2>Recovery by {name_of(recovery.method)}</h2><p>{words(recovery_text(recovery))}</p>"
    yield from listed(map(words, recovery.notes))
    rows: list[list[Cell | str]] = [
        [layer.name or "(root)", _error(layer.error_before), _error(layer.error_after)]
        for layer in recovery.layers
    ]
    if rows:
        yield from table(["layer", "error before", "error after"], rows, "Recovered layers")


def _error(error: float) -> Cell:
    return Cell(percent(error), error)


def _masks(report: Report) -> Iterator[str]:
    lines = [words(f"{label}: {text}" if label else text) for label, text in mask_lines(report)]
    if lines:
        yield "<h2>Masks</h2>"
        yield from listed(lines)


def _trade_off(report: Report) -> Iterator[str]:
    found = report.trade_off
    if found is None or not found.points:
        return
    yield f"<h2>Trade-off of {name_of(found.title)}</h2>"
    picture = sweep_picture(found)
    if len(picture.encode()) <= _PICTURE_ROOM:
        yield f"<figure>{inline(picture)}</figure>"
    else:
        yield "<p>The curves are too large for this page; the sweep wrote them beside its table.</p>"
    yield from by_budget(found.points)


def _proof(report: Report) -> Iterator[str]:
    lines = [words(parity_text(check)) for check in report.parity]
    if report.onnx:
        lines += [words(f"ONNX: {onnx_text(report.onnx)}"), *map(words, report.onnx.notes)]
    if lines:
        yield "<h2>Proof</h2><p>How far the model is from the dense one with the same units masked.</p>"
        yield from listed(lines)


def _environment(report: Report) -> dict[str, object]:
    found = report.environment
    return {"device": found.device, **found.versions} if found is not None else {}
