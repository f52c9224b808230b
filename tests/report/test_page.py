"""The page of a report: what it says, that it is whole and harmless, and how large it gets."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from prunecli.history import EpochRow
from prunecli.report import (
    Accuracy,
    Change,
    LayerChange,
    MaskedLayer,
    Notice,
    RecoveredLayer,
    Recovery,
    Report,
    Totals,
    WrittenFile,
)
from prunecli.report.bars import BarColumn, draw_bars
from prunecli.report.boxes import MOST_GROUPS
from prunecli.report.headline import cards, verdict
from prunecli.report.html import ROOM, listed, table
from prunecli.report.page import report_page
from prunecli.report.page_layers import MOST_BARS
from prunecli.report.page_look import STYLE

from .full_report import full_report
from .page_reader import read

CHECKS = (
    "ok: macs_ratio is 0.655172; fails if macs_ratio>0.7",
    "FAILED: top1_drop is 2.5; fails if top1_drop>1",
)
MOST_BYTES = 300 * 1024
NASTY = '<script>alert("&")</script>\x1b[31m\u202e'
SAME = Change(1000, 1000)


def text_of(page: str) -> str:
    lines = "".join(read(page).text).replace("\N{NO-BREAK SPACE}", " ").split("\n")
    return "\n".join(line.strip() for line in lines if line.strip()) + "\n"


def plain(**values: object) -> Report:
    """Return a report of which only the totals are known, but for `values`."""
    found = {"title": "net", "layers": (), "totals": Totals(SAME, SAME, Change(4000, 4000)), **values}
    return Report(**found)  # type: ignore[arg-type]


def test_the_full_report_survives_its_json() -> None:
    report = full_report()
    assert Report.from_json(report.to_json()) == report


def test_the_text_of_the_page(golden: Callable[[str, str], None]) -> None:
    golden("report-page.txt", text_of(report_page(full_report(), CHECKS)))


def test_the_page_is_whole_by_itself() -> None:
    page = report_page(full_report(), CHECKS)
    reader = read(page)
    assert not {"link", "img", "iframe", "object", "form", "a"} & set(reader.seen)
    names = {name for name, _ in reader.attributes}
    assert not {"href", "src", "style"} & names
    assert not {name for name in names if name.startswith("on")}
    assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    assert "@import" not in page
    assert reader.seen.count("script") == 1
    assert reader.seen.count("style") == 1
    assert "default-src 'none'" in dict(reader.attributes[:4]).get("content", "")


def test_each_picture_has_as_many_marks_as_there_is_to_show() -> None:
    report = full_report()
    page = report_page(report)
    for key, count in (("units", 3), ("weights", 2), ("macs", 3), ("params", 3)):
        assert page.count(f'data-bar="{key}"') == count
    assert page.count('data-box="all"') == 2
    assert page.count('data-box="kept"') == 1
    assert page.count("<polyline") > 8


def test_sections_appear_only_where_there_is_something() -> None:
    page = report_page(plain())
    assert "<h2" not in page
    assert "Nothing was cut." in page
    assert "Checks" not in page


def test_names_from_anywhere_are_harmless() -> None:
    report = full_report()
    group = replace(report.scores.groups[0], name=NASTY)
    model = replace(report.models[0], name=NASTY, read_as=NASTY, sha256=NASTY, parents={NASTY: NASTY})
    page = report_page(
        replace(
            report,
            title=NASTY,
            layers=(replace(report.layers[0], name=NASTY, kind=NASTY), *report.layers),
            masks=replace(report.masks, layers=(MaskedLayer(NASTY, 1, 2),), collapsed=(NASTY,)),
            models=(model, *report.models),
            scores=replace(report.scores, method=NASTY, groups=(group,)),
            recovery=Recovery(NASTY, 1, NASTY, layers=(RecoveredLayer(NASTY, 1, 0),), notes=(NASTY,)),
            training=replace(report.training, rows=(EpochRow(1, NASTY, 0.1, 2, density={NASTY: 0.5}),)),
            trade_off=replace(report.trade_off, points=(replace(report.trade_off.points[0], name=NASTY),)),
            files=(WrittenFile(NASTY, 1, NASTY),),
            settings={NASTY: [NASTY]},
            warnings=(Notice(NASTY, NASTY),),
        ),
        (NASTY,),
    )
    reader = read(page)
    assert reader.seen.count("script") == 1
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert reader.seen.count("tr") > 10


@pytest.mark.parametrize("beginning", ("layers.", "a_name." * 600, '"' * 4000), ids=("short", "long", "odd"))
def test_the_page_stays_small_however_large_the_report(beginning: str) -> None:
    report = full_report()
    names = [f"{beginning}{number}" for number in range(1000)]
    masked = tuple(MaskedLayer(name, 1, 2) for name in names)
    method = dict.fromkeys(names[:50], names[0])
    density = dict.fromkeys(names[:50], 0.5)
    layers = tuple(
        LayerChange(name, "Conv2d", Change(64, 32), Change(9999, 99), Change(9999, number), Change(9, 3))
        for number, name in enumerate(names)
    )
    rows = tuple(
        EpochRow(number + 1, f"phase {number // 100}", 0.1, 2.0, 0.5, density=density)
        for number in range(1000)
    )
    facts = replace(
        report.models[0].facts,
        layers=tuple(replace(report.models[0].facts.layers[0], name=name) for name in names),
    )
    group = report.scores.groups[0]
    point = report.trade_off.points[0]
    page = report_page(
        replace(
            report,
            title=names[0],
            layers=layers,
            masks=replace(report.masks, layers=masked, collapsed=names),
            models=tuple(replace(model, facts=facts, method=method) for model in report.models),
            scores=replace(report.scores, groups=tuple(replace(group, name=name) for name in names)),
            recovery=replace(report.recovery, layers=tuple(RecoveredLayer(name, 1, 0) for name in names)),
            training=replace(report.training, rows=rows, phases=report.training.phases * 500),
            trade_off=replace(report.trade_off, points=tuple(replace(point, name=name) for name in names)),
            files=tuple(WrittenFile(name, 1, name) for name in names),
            settings={name: name for name in names},
            warnings=tuple(Notice(name, name) for name in names),
        ),
        names,
    )
    read(page)
    assert len(page.encode()) < MOST_BYTES
    assert page.count('data-bar="macs"') == MOST_BARS
    assert page.count('data-box="all"') == MOST_GROUPS
    assert f"The {MOST_BARS} of 1,000 layers with most MACs" in page
    assert f"The first {MOST_GROUPS} of 1,000 groups are drawn." in page
    assert re.search(r"\d+ more rows are in the JSON\.", page)


def test_a_thousand_layers_leave_room_for_most_of_them() -> None:
    layers = tuple(
        LayerChange(f"blocks.{number}.conv", "Conv2d", Change(64, 32), Change(9999, 99), Change(9999, number))
        for number in range(1000)
    )
    page = report_page(plain(layers=layers))
    assert len(page.encode()) < MOST_BYTES
    left_out = re.search(r"(\d+) more rows are in the JSON\.", page)
    assert left_out is None or int(left_out[1]) < 750


@pytest.mark.parametrize(
    ("macs", "params", "said"),
    (
        ((100, 50), (100, 50), "Half of the MACs and half of the params are gone."),
        ((100, 100), (100, 30), "70.0% of the params are gone."),
        ((100, 120), (100, 30), "70.0% of the params are gone; the MACs grew by 20.0%."),
        ((100, 100), (100, 100), "Nothing was cut."),
    ),
)
def test_the_verdict_says_what_went(macs: tuple[int, int], params: tuple[int, int], said: str) -> None:
    assert verdict(plain(totals=Totals(Change(*params), Change(*macs), SAME))) == said


def test_the_verdict_says_what_accuracy_and_time_came_to() -> None:
    report = full_report()
    said = verdict(report)
    assert said.endswith("; top1 97.50% -> 95.00%; a batch takes 50.0% of the time in onnxruntime.")
    losses = plain(accuracy_before=Accuracy(9, 0.5), accuracy_after=Accuracy(9, 0.25))
    assert verdict(losses) == "Nothing was cut; loss 0.5000 -> 0.2500."


def test_the_verdict_knows_masks_and_training() -> None:
    report = full_report()
    assert verdict(plain(masks=report.masks)) == "60.0% of the prunable weights are zero."
    assert verdict(plain(training=report.training)) == "Trained for 6 epochs; nothing was cut."


def test_cards_say_what_is_left() -> None:
    found = {card.label: card for card in cards(full_report())}
    assert found["File size"].was == "53.8% of 13.0 kB"
    assert found["Accuracy (top-1)"].mark == 0.975
    assert found["Latency, onnxruntime"].was == "50.0% of 0.4 ms"
    assert {card.label for card in cards(plain())} == {"MACs", "Params", "Size of the params"}


def test_bars_of_a_column_share_a_scale() -> None:
    column = BarColumn("units", "units", (Change(100, 50), Change(50, 0), None), str)
    picture = draw_bars("Layers", ["a", "b", "c"], [column])
    widths = [float(width) for width in re.findall(r'class="kept".* width="([\d.]+)%"', picture)]
    outlines = [float(width) for width in re.findall(r'class="dense".* width="([\d.]+)%"', picture)]
    assert widths == [outlines[1], 0.0]
    assert outlines[0] == pytest.approx(2 * outlines[1], abs=0.01)


def test_what_has_no_room_is_counted() -> None:
    rows = [(f"row {number}", "x" * 100) for number in range(200)]
    page = "\n".join(table(("name", "text"), rows, "Rows"))
    kept = page.count("<tr>") - 1
    assert 0 < kept < 200
    assert f"<p>{200 - kept} more rows are in the JSON.</p>" in page
    lines = list(listed(["x" * (ROOM - 9), "y"]))
    assert lines[-1] == "<p>1 more line is in the JSON.</p>"


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", (0, 1), ids=("light", "dark"))
def test_texts_and_marks_stand_out(scheme: int) -> None:
    colours: dict[str, str] = {}
    for rules in re.findall(r":root\{([^}]*)\}", STYLE)[: scheme + 1]:
        for name, colour in re.findall(r"--(\w+):(#\w+)", rules):
            colours[name] = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    for ground in ("ground", "panel", "best"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
    for name in ("soft", "good", "bad", "care"):
        assert contrast(colours[name], colours["ground"]) >= 4.5
    for name in ("accent", "care"):
        assert contrast(colours[name], colours["ground"]) >= 3
