"""A sweep as numbers: means over seeds, JSON and back, CSV, Markdown, curves and the page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from statistics import mean, stdev
from xml.etree import ElementTree

import pytest

from prunecli.errors import InputError
from prunecli.report import Change, Environment
from prunecli.report.points import Spread, spread
from prunecli.report.sweep import SweepReport, SweepRow, TrialFigures, summarise
from prunecli.report.sweep_page import MOST_ROWS, sweep_page
from prunecli.report.sweep_pictures import sweep_picture
from prunecli.report.sweep_text import failures, sweep_csv, sweep_markdown, sweep_notes, sweep_table

from .page_reader import read

SVG = "{http://www.w3.org/2000/svg}"
METHODS = (
    ("magnitude", "global"), ("magnitude", "layer"), ("gradient", "global"), ("gradient", "layer"),
    ("activation", "global"), ("activation", "layer"), ("lap", "global"), ("lap", "layer"),
    ("lamp", "global"), ("snip", "global"), ("grasp", "global"), ("synflow", "global"), ("random", "global"),
)  # fmt: skip
RATIOS = (1, 2, 4, 8, 16, 32, 64)


def figures(ratio: float, top1: float | None, collapsed: tuple[str, ...] = ()) -> TrialFigures:
    return TrialFigures(
        params=Change(1000, round(1000 / ratio)),
        macs=Change(4000, round(4000 / ratio**0.5)),
        pruned=Change(900, round(1000 / ratio) - 100),
        reached=ratio,
        collapsed=collapsed,
        samples=0 if top1 is None else 100,
        loss=None if top1 is None else 2 - top1,
        top1=top1,
        top5=None if top1 is None else min(1, top1 + 0.2),
    )


def row(name: str, scope: str, ratio: int, seed: int, **values: object) -> SweepRow:
    found = figures(ratio, 0.9 - 0.01 * ratio + 0.02 * seed - 0.001 * len(name))
    return SweepRow(name, scope, f"ratio={ratio}", ratio, seed, **{"figures": found, **values})  # type: ignore[arg-type]


def report(seeds: int = 3, **values: object) -> SweepReport:
    rows = tuple(row(*method, ratio, seed) for method in METHODS for ratio in RATIOS for seed in range(seeds))
    facts = {
        "title": "net.pt",
        "granularity": "weight",
        "rows": rows,
        "settings": {"epochs": 5, "seeds": [0, 1, 2]},
        "environment": Environment("cpu", {"torch": "2.0"}),
    }
    return SweepReport(**{**facts, **values})  # type: ignore[arg-type]


def small() -> SweepReport:
    """Return what has one of everything: a spread, a collapse, a failure, a scope."""
    rows = (
        row("snip", "global", 2, 0),
        row("snip", "global", 2, 1),
        row("snip", "layer", 2, 0, figures=figures(2, 0.5, ("fc1", "fc2"))),
        row("snip", "layer", 2, 1, figures=figures(2, 0.6)),
        row("grasp", "global", 2, 0, figures=None, error="Nothing <is> left | at all."),
        row("grasp", "global", 2, 1),
    )
    return report(rows=rows)


def test_means_and_spreads_are_those_of_the_library() -> None:
    values = [0.3, 0.5, 0.45, 0.9]
    found = spread(values)
    assert found is not None
    assert found.mean == pytest.approx(mean(values))
    assert found.deviation == pytest.approx(stdev(values))
    assert found.count == 4
    assert spread([0.5, None]) == Spread(0.5, None, 1)
    assert spread([None]) is None


def test_seeds_come_together_by_method_scope_and_budget() -> None:
    points = summarise(small().rows)
    assert [point.name for point in points] == ["snip", "snip@layer", "grasp"]
    snip, by_layer, grasp = points
    assert snip.top1 == spread([0.9 - 0.02 - 0.004, 0.9 - 0.02 + 0.02 - 0.004])
    assert snip.compression_error == Spread(0.0, 0.0, 2)
    assert snip.params_left == Spread(0.5, 0.0, 2)
    assert by_layer.collapsed == spread([2.0, 0.0])
    assert by_layer.collapsed_layers == ("fc1", "fc2")
    assert (grasp.seeds, grasp.failed, grasp.error) == (2, 1, "Nothing <is> left | at all.")
    assert grasp.top1 is not None
    assert grasp.top1.count == 1


def test_what_is_left_of_nothing_has_no_ratio() -> None:
    empty = SweepRow("snip", "global", "ratio=2", 2.0, 0, figures=figures(2, 0.1))
    gone = TrialFigures(Change(4, 0), Change(4, 0), Change(4, 0), None)
    assert empty.compression_error == 0
    assert SweepRow("snip", "global", "ratio=2", 2.0, 0, figures=gone).compression_error is None
    assert SweepRow("snip", "global", "ratio=8", 8.0, 0, figures=figures(4, 0.1)).compression_error == 0.5


@pytest.mark.parametrize("make", (report, small), ids=("whole", "small"))
def test_json_and_back(make: Callable[[], SweepReport]) -> None:
    made = make()
    text = made.to_json()
    assert SweepReport.from_json(text) == made
    data = json.loads(text)
    assert data["version"] == 1
    assert [point["name"] for point in data["summary"]] == [point.name for point in summarise(made.rows)]


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("{", r"is not JSON \(.*\)\. Expected what `prunecli sweep` wrote"),
        ("[]", "has no valid `version` number"),
        ('{"version": 2}', "has version 2, but this prunecli reads up to 1"),
        ('{"version": 1}', "`title`: missing field"),
        (
            '{"version": 1, "title": "a", "granularity": "unit", "rows": [{"method": 3}]}',
            "rows.0..method`: found 3, expected a text",
        ),
    ),
)
def test_what_is_no_sweep_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SweepReport.from_json(text)


def test_csv_has_a_line_per_trial_with_numbers_in_full() -> None:
    first, *rest = csv.DictReader(io.StringIO(sweep_csv(small())))
    assert len(rest) == 5
    assert float(first["top1"]) == 0.9 - 0.02 - 0.004
    assert (first["params"], first["params_left"], first["collapsed"], first["error"]) == (
        "1000",
        "500",
        "0",
        "",
    )
    assert rest[1]["collapsed_layers"] == "fc1 fc2"
    assert rest[3]["top1"] == ""
    assert rest[3]["error"] == "Nothing <is> left | at all."


def test_markdown_has_a_row_per_method_and_budget() -> None:
    text = sweep_markdown(small())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(sweep_table(small())[0]) + 1}
    assert "| snip@layer | ratio=2 | 55.00 ± 7.07 |" in text
    assert "Nothing &lt;is&gt; left \\| at all." in text
    assert "sample standard deviation over 2 seeds" in text


def test_one_seed_has_no_spread() -> None:
    alone = report(1)
    assert "±" not in " ".join(cell for line in sweep_table(alone) for cell in line)
    assert "one seed only" in sweep_notes(alone)[0]
    assert all(point.top1 is not None and point.top1.deviation is None for point in summarise(alone.rows))


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    bare = report(rows=(row("snip", "global", 2, 0, figures=figures(2, None)),))
    assert sweep_table(bare)[0] == ("method", "budget", "r_e", "error", "params", "MACs")


def test_what_failed_alike_is_noted_once() -> None:
    errors = {("a", 2): None, ("a", 64): "Too few.", ("b", 2): "No classes.", ("b", 64): "Too few."}
    rows = tuple(
        SweepRow(name, "global", f"ratio={ratio}", ratio, 0, None, error)
        for (name, ratio), error in errors.items()
        if error
    )
    assert failures(SweepReport("net", "weight", rows)) == [
        "a, b failed at ratio=64: Too few.",
        "b failed at ratio=2: No classes.",
    ]


@pytest.mark.parametrize(("start", "epochs", "is_noted"), (("checkpoint", 0, True), ("checkpoint", 1, False)))
def test_seeds_that_change_nothing_are_noted(start: str, epochs: int, is_noted: bool) -> None:
    rows = tuple(SweepRow("a", "global", "ratio=2", 2, seed, None, "x") for seed in (0, 1))
    notes = sweep_notes(SweepReport("net", "weight", rows, {"start": start, "epochs": epochs}))
    assert any("the same for all seeds" in note for note in notes) is is_noted


def test_made_up_samples_are_noted() -> None:
    made_up = report(settings={"test": "random:64"})
    assert any("made up" in note for note in sweep_notes(made_up))
    assert not any("made up" in note for note in sweep_notes(report()))


def curves(svg: str) -> ElementTree.Element:
    tree = ElementTree.fromstring(svg)
    assert {each.tag.removeprefix(SVG) for each in tree.iter()} <= {
        "svg", "style", "rect", "line", "polyline", "circle", "text", "title",
    }  # fmt: skip
    width, height = (float(tree.attrib[name]) for name in ("width", "height"))
    for each in tree.iter(f"{SVG}circle"):
        assert 0 <= float(each.attrib["cx"]) <= width
        assert 0 <= float(each.attrib["cy"]) <= height
    return tree


def texts(tree: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in tree.iter(f"{SVG}text")]


def test_thirteen_methods_are_thirteen_lines_that_can_be_told_apart() -> None:
    tree = curves(sweep_picture(report().trade_off))
    lines = list(tree.iter(f"{SVG}polyline"))
    assert len(lines) == 2 * 13  # over r, and over MACs
    looks = {(each.attrib["stroke"], each.attrib.get("stroke-dasharray")) for each in lines}
    assert len(looks) == 13
    assert sum("stroke-dasharray" in each.attrib for each in lines) == 2 * 4
    assert {
        "Accuracy (top-1) by compression",
        "magnitude@layer",
        "64",
        "compression asked for, r (log)",
    } <= set(texts(tree))
    doublings = [float(point.split(",")[0]) for point in lines[0].attrib["points"].split()]
    steps = [after - before for before, after in zip(doublings, doublings[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * 6, abs=0.2)
    whiskers = [each for each in tree.iter(f"{SVG}line") if "opacity" in each.attrib]
    assert len(whiskers) == 2 * 13 * 7


def test_one_seed_has_no_whiskers() -> None:
    tree = curves(sweep_picture(report(1).trade_off))
    assert not [each for each in tree.iter(f"{SVG}line") if "opacity" in each.attrib]


def test_collapses_have_a_chart_of_their_own() -> None:
    found = texts(curves(sweep_picture(small().trade_off)))
    assert "Layers without any weight left" in found
    assert found.count("snip@layer") == 3
    assert found.count("snip") == 2


def test_without_test_data_the_macs_are_drawn() -> None:
    rows = tuple(row("snip", "global", ratio, 0, figures=figures(ratio, None)) for ratio in RATIOS)
    assert "MACs left" in texts(curves(sweep_picture(report(rows=rows).trade_off)))


def test_units_are_drawn_over_parameters_and_macs() -> None:
    found = texts(curves(sweep_picture(report(granularity="unit").trade_off)))
    assert "parameters of the dense model / parameters left (log)" in found


def test_the_page_is_whole_by_itself() -> None:
    page = sweep_page(report())
    reader = read(page)
    assert reader.seen.count("script") == 1
    assert not {"link", "img", "iframe", "object", "form"} & set(reader.seen)
    names = {name for name, _ in reader.attributes}
    assert not {"href", "src", "onclick", "onload"} & names
    assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("prefers-color-scheme:dark") == 2  # of the page, and of the picture
    assert ("name", "viewport") in reader.attributes
    assert len(page.encode()) < 300 * 1024
    assert reader.seen.count("tr") == 1 + 13 + 1 + 13 * 7
    assert page.count('class="best"') >= 7


def test_everything_on_the_page_is_escaped() -> None:
    nasty = '<script>alert("&")</script>'
    rows = (row(nasty, "global", 2, 0), row("x", "global", 2, 0, figures=None, error=nasty))
    page = sweep_page(report(rows=rows, title=nasty, settings={nasty: [nasty]}))
    assert "<script>alert" not in page
    assert read(page).seen.count("script") == 1
    curves(sweep_picture(report(rows=rows).trade_off))


def test_a_large_sweep_keeps_the_page_small() -> None:
    rows = tuple(row("snip", "global", ratio, 0) for ratio in range(1, MOST_ROWS + 11))
    page = sweep_page(report(rows=rows))
    assert "10 more rows are in the CSV and the JSON" in page
    assert len(page.encode()) < 300 * 1024
