"""Long tables: a terminal gets the rows that say most, and is told so; a pipe gets all."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from prunecli.cli import tables
from prunecli.cli.render import MOST_ROWS, Column, layers_shown, most_rows, render_report
from prunecli.cli.tables import Table, shortened, to_markdown, to_terminal
from prunecli.report import Change, LayerFacts, ModelFacts, Report, compare, mask_facts


def deep(layers: int = 1000) -> Report:
    """Return the report of a network of that many layers, of which every 50th lost half of its units."""

    def facts(is_cut: bool) -> ModelFacts:
        widths = [8 if is_cut and i % 50 == 7 else 16 for i in range(layers)]
        names = (f"blocks.{i}.attention.projection_of_the_values.inner" for i in range(layers))
        linear = tuple(
            LayerFacts(name, "Linear", width, 17 * width, 16 * width * (1 + i % 5))
            for i, (name, width) in enumerate(zip(names, widths, strict=True))
        )
        return ModelFacts((*linear, LayerFacts("norm", "LayerNorm", None, 32, 0)), 1)

    return compare(facts(False), facts(True), title="deep.pt", units=Change(16 * layers, 16 * layers - 160))


def printed(report: Report, width: int, most: int | None) -> str:
    stream = io.StringIO()
    render_report(report, Console(file=stream, width=width, force_terminal=False), {}, most)
    return stream.getvalue()


@pytest.mark.parametrize("width", (80, 100))
def test_a_thousand_layers_on_a_terminal(width: int, golden: Callable[[str, str], None]) -> None:
    text = printed(deep(), width, MOST_ROWS)
    golden(f"report-deep-{width}.txt", text)
    assert max(map(len, text.splitlines())) <= width
    assert "and 960 more layers; --all shows them" in text
    assert len(text.splitlines()) < MOST_ROWS + 15


def test_what_changed_is_shown_and_the_rest_summed_up() -> None:
    report = deep()
    chosen = layers_shown(report, MOST_ROWS)
    changed = [layer for layer in report.layers if layer.macs.ratio < 1]
    assert len(chosen) == MOST_ROWS
    assert {layer.name for layer in changed} <= {layer.name for layer in chosen}
    assert chosen == [layer for layer in report.layers if layer in chosen]  # in their order
    assert layers_shown(report) == list(report.layers[:-1])
    assert "(961 others)" in printed(report, 100, MOST_ROWS)


def test_of_masked_layers_those_are_shown_that_lost_most() -> None:
    facts = ModelFacts(tuple(LayerFacts(f"l{i}", "Linear", 4, 20, 16) for i in range(50)), 1)
    counts = {f"l{i}.weight": (2 if i == 33 else 16, 16) for i in range(50)}
    report = compare(facts, facts, title="net.pt", masks=mask_facts(counts, facts, ratio=2.0))
    assert [layer.name for layer in layers_shown(report, 1)] == ["l33"]


def test_a_pipe_gets_every_layer() -> None:
    text = printed(deep(), 100_000, None)
    assert sum("projection_of_the_values" in line for line in text.splitlines()) == 1000
    assert "--all" not in text
    assert "..." not in text


@pytest.mark.parametrize(
    ("is_terminal", "everything", "most"),
    ((True, False, MOST_ROWS), (True, True, None), (False, False, None), (False, True, None)),
)
def test_how_many_rows(
    is_terminal: bool, everything: bool, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal(is_terminal))
    assert most_rows(everything) == most


class Terminal(io.StringIO):
    """A standard output that says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def test_a_long_table_is_shortened_by_its_largest_numbers() -> None:
    table = Table("", ("name", "size"), (("a", 1), ("b", -9), ("c", None), ("d", 5)), chosen_by="size")
    assert [row[0] for row in shortened(table, 2).rows] == ["b", "d"]
    assert shortened(table, 4) is shortened(table, None) is table
    plain = Table("", ("name", "size"), table.rows)
    assert [row[0] for row in shortened(plain, 2).rows] == ["a", "b"]


def test_a_terminal_is_told_what_it_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("Rows", ("name", "size"), tuple((f"r{i}", i) for i in range(41)), chosen_by="size")
    monkeypatch.setattr(tables, "most_rows", lambda everything: None if everything else 40)
    short = to_terminal([table])
    assert "and 1 more row; --all shows them" in short
    assert "r0 " not in short
    whole = to_terminal([table], everything=True)
    assert "r0 " in whole
    assert "--all" not in whole


def test_names_of_files_are_no_markup() -> None:
    text = to_markdown([Table("", ("a",), ((1,),))], "## <script>|x\x1b[31m.pt", ["<b>"])
    assert text.splitlines()[0] == "## &lt;script>\\|x.pt"
    assert text.splitlines()[-1] == "&lt;b>"


def test_a_hundred_thousand_rows_take_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    monkeypatch.setattr(Column, "width", property(lambda self: widths.append(1) or 5))
    assert to_terminal([Table("", ("name",), (("ab",),) * 1000)]).count("\nab") == 1000
    assert len(widths) < 10  # every one looks at all cells
