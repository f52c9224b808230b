"""Pictures of a training run: whole SVG, nothing but shapes and text in it, and the right numbers."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from prunecli.history import EpochRow
from prunecli.report import TrainingFacts, training_pictures
from prunecli.report.svg import Chart, HeatMap, Line, Mark, draw_heat_map, draw_lines

SVG = "{http://www.w3.org/2000/svg}"


def row(epoch: int, phase: str = "training", **values: object) -> EpochRow:
    return EpochRow(epoch, phase, rate=0.1, loss=2.0 / epoch, **values)  # type: ignore[arg-type]


def facts(*rows: EpochRow) -> TrainingFacts:
    return TrainingFacts("none", 64, rows=rows)


def parsed(svg: str) -> ElementTree.Element:
    """Return the tree, after looking for what has no place in it."""
    tree = ElementTree.fromstring(svg)
    known = {"svg", "style", "rect", "line", "polyline", "circle", "text", "title"}
    assert {each.tag.removeprefix(SVG) for each in tree.iter()} <= known
    assert "href" not in svg
    assert "nan" not in svg
    width, height = (float(tree.attrib[name]) for name in ("width", "height"))
    for each in tree.iter(f"{SVG}text"):
        assert 0 <= float(each.attrib["x"]) <= width
        assert 0 <= float(each.attrib["y"]) <= height
    for each in tree.iter(f"{SVG}polyline"):
        for point in each.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    return tree


def texts(tree: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in tree.iter(f"{SVG}text")]


def lines(tree: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split(","))) for point in each.attrib["points"].split()]  # type: ignore[misc]
        for each in tree.iter(f"{SVG}polyline")
    ]


def test_a_plain_run_has_curves_of_what_was_measured() -> None:
    pictures = training_pictures(facts(row(1, top1=0.3), row(2, top1=0.4), row(3, top1=0.5)))
    assert list(pictures) == ["curves.svg"]
    tree = parsed(pictures["curves.svg"])
    assert {"Loss", "Accuracy (top-1)", "epoch", "30 %", "50 %"} <= set(texts(tree))
    assert "test" not in texts(tree)
    loss, hits = lines(tree)
    assert len(loss) == len(hits) == 3
    assert loss[0][1] < loss[1][1] < loss[2][1]  # downwards on the page
    assert hits[0][1] > hits[1][1] > hits[2][1]


def test_a_run_without_epochs_has_no_picture() -> None:
    assert training_pictures(facts()) == {}


def test_generations_are_marked_and_not_joined() -> None:
    rows = [
        row(1, "generation 0", units=8, density={"a": 0.5, "b": 0.4}, total_density=0.45),
        row(2, "generation 0", units=8, density={"a": 0.4, "b": 0.3}, total_density=0.35),
        row(3, "final", units=4, density={"a": 0.6, "b": 0.5}, total_density=0.55),
        row(4, "final", units=4, density={"a": 0.61}, total_density=0.61),
    ]
    pictures = training_pictures(facts(*rows))
    assert list(pictures) == ["curves.svg", "density.svg", "colormap.svg"]
    assert "Units left" in texts(parsed(pictures["curves.svg"]))
    density = parsed(pictures["density.svg"])
    assert {"generation 0", "final", "a", "b", "all layers"} <= set(texts(density))
    assert len(lines(density)) == 5
    assert sum(1 for _ in density.iter(f"{SVG}circle")) == 1  # b in epoch 3 alone
    cells = texts(parsed(pictures["colormap.svg"]))
    assert cells.count("0.40") == cells.count("0.30") == 1
    assert cells.count("0.61") == 2  # of a, and of all layers
    assert "0.50" not in cells  # not of the last epoch
    assert cells.index("generation 0") < cells.index("final") < cells.index("a") < cells.index("b")


def test_names_are_escaped_and_long_ones_shortened() -> None:
    long = "features." * 9 + "<script>"
    charted = draw_lines([Chart("<b>", (Line(long, ((1, 1.0), (2, 2.0))), Line("x", ((1, 1.5),))))])
    mapped = draw_heat_map(HeatMap("&", (long,), ("<i>",), ((0.5,),)))
    for picture in (charted, mapped):
        assert "<script>" not in picture
        parsed(picture)
    assert any("\N{HORIZONTAL ELLIPSIS}" in text for text in texts(parsed(mapped)))


@pytest.mark.parametrize(
    "points",
    (
        (),
        ((1, None),),
        ((1, 0.5),),
        ((1, 0.5), (2, 0.5)),
        ((1, 0.0), (2, 0.0)),
        ((1, 1e-9), (2, 2e-9)),
        ((1, 1e-13), (2, 2e-13)),
        ((1, 0.98), (2, 0.9800000000000001)),
        ((0.25, 1e6), (0.5, 3e6), (0.75, None), (1, 5e6)),
    ),
)
def test_odd_rows_of_points_are_drawn_too(points: tuple[tuple[float, float | None], ...]) -> None:
    assert "odd" in texts(parsed(draw_lines([Chart("odd", (Line("odd", points),), x_is_whole=False)])))


def test_a_mark_is_named_where_there_is_room() -> None:
    points = tuple((float(epoch), 1.0 / epoch) for epoch in range(1, 101))
    marks = (Mark(0.5, "generation 0"), Mark(90.5, "generation 1"), Mark(91.5, "final"))
    found = texts(parsed(draw_lines([Chart("crowded", (Line("x", points),), marks)])))
    assert "generation 0" in found
    assert "final" in found
    assert "generation 1" not in found


def test_forty_layers_have_forty_colours() -> None:
    chart = Chart("deep", tuple(Line(f"layer {n}", ((1, n), (2, n + 1))) for n in range(40)))
    tree = parsed(draw_lines([chart]))
    assert len({each.attrib["stroke"] for each in tree.iter(f"{SVG}polyline")}) == 40


def test_an_empty_cell_stays_empty() -> None:
    tree = parsed(draw_heat_map(HeatMap("holes", ("a", "b"), ("0", "1"), ((0.5, None), (None, 0.7)))))
    assert {"0.50", "0.70"} <= set(texts(tree))
    assert sum(1 for each in tree.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None) == 2
