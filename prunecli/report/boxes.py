"""How scores are spread in each group -> box plots of ranks, all units above those that stay, as one SVG."""

from __future__ import annotations

from collections.abc import Iterator

from prunecli.report.bars import draw_name
from prunecli.report.distributions import Box, GroupScores, ScoreFacts
from prunecli.report.svg import harmless, round_numbers, shorten

MOST_GROUPS = 40
_LEFT, _RIGHT = 33.0, 98.0
"""Where ranks begin and end, in percent of the width."""
_ROW, _HEAD, _FOOT, _THICK = 32, 34, 40, 9


def draw_boxes(facts: ScoreFacts) -> str:
    """Return two boxes per group, as in figure 3 of Molchanov et al. (2017): quartiles, median, extremes.

    Groups beyond the first `MOST_GROUPS` are left out.
    """
    groups = facts.groups[:MOST_GROUPS]
    bottom = _HEAD + _ROW * len(groups)
    parts = [*_legend(), *_rules(facts.units, bottom)]
    for number, group in enumerate(groups):
        parts += _row(group, _HEAD + _ROW * number, facts.units)
    label = f"Ranks of the units of {len(groups)} groups by {facts.method}"
    head = f'<svg class="fluid" width="100%" height="{bottom + _FOOT}" role="img" '
    return "\n".join((head + f'aria-label="{harmless(label)}">', *parts, "</svg>"))


def _legend() -> Iterator[str]:
    for x, look, text in ((_LEFT, "dense", "all units"), (_LEFT + 22, "kept", "units that stay")):
        yield f'<rect class="{look}" x="{x}%" y="6" width="14" height="{_THICK}"/>'
        yield f'<text x="{x}%" dx="20" y="15">{text}</text>'


def _rules(units: int, bottom: int) -> Iterator[str]:
    for rank in round_numbers(0, max(units, 1), 5, True):
        if rank <= units:
            x = _place(rank, units)
            yield f'<line class="rule" x1="{x}" x2="{x}" y1="{_HEAD - 6}" y2="{bottom}"/>'
            yield f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{rank:.0f}</text>'
    yield f'<text x="{_LEFT}%" y="{bottom + 33}">rank among all {units:,} units</text>'


def _row(group: GroupScores, y: int, units: int) -> Iterator[str]:
    said = f"{shorten(group.name, 80)}: {group.kept} of {group.units} units stay; {_said(group.ranks)}"
    if group.kept_ranks is not None:
        said += f"; of those that stay: {_said(group.kept_ranks)}"
    yield f"<g><title>{harmless(said)}</title>"
    yield f'<rect class="hit" y="{y}" width="{_LEFT - 1}%" height="{_ROW}"/>'
    yield from draw_name(group.name, y + 19)
    yield from _box(group.ranks, y + 4, units, "all")
    if group.kept_ranks is not None:
        yield from _box(group.kept_ranks, y + 17, units, "kept")
    yield "</g>"


def _said(box: Box) -> str:
    return f"ranks {box.low:,.0f} to {box.high:,.0f}, median {box.median:,.0f}"


def _box(box: Box, y: int, units: int, kind: str) -> Iterator[str]:
    low, quarter, median, three_quarters, high = (
        _place(rank, units) for rank in (box.low, box.quarter, box.median, box.three_quarters, box.high)
    )
    middle = y + _THICK / 2
    width = (_RIGHT - _LEFT) * (box.three_quarters - box.quarter) / max(units, 1)
    stem, look = ("stem", "dense") if kind == "all" else ("stem of-kept", "kept")
    for start, end in ((low, quarter), (three_quarters, high)):
        yield f'<line class="{stem}" x1="{start}" x2="{end}" y1="{middle}" y2="{middle}"/>'
    place = f'x="{quarter}" y="{y}" width="{width:.2f}%" height="{_THICK}"'
    yield f'<rect class="{look}" data-box="{kind}" {place}/>'
    yield f'<line class="middle" x1="{median}" x2="{median}" y1="{y - 1}" y2="{y + _THICK + 1}"/>'


def _place(rank: float, units: int) -> str:
    return f"{_LEFT + (_RIGHT - _LEFT) * rank / max(units, 1):.2f}%"
