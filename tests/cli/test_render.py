from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prunecli.cli import render, tables
from prunecli.cli.lines import paragraph
from prunecli.cli.render import (
    Column,
    fit,
    fold,
    fold_list,
    layer_columns,
    render_report,
    stdout_console,
    table_lines,
)
from prunecli.cli.tables import Table
from prunecli.history import EpochRow
from prunecli.report import (
    Accuracy,
    Change,
    LayerFacts,
    ModelFacts,
    OnnxCheck,
    ParityCheck,
    PhaseFacts,
    Report,
    TrainingFacts,
    WrittenFile,
    compare,
    mask_facts,
    to_markdown,
)


def layers(width: int) -> tuple[LayerFacts, ...]:
    """Return a network with long names."""
    facts = [
        LayerFacts("conv1", "Conv2d", 64, 9408, 118_013_952),
        LayerFacts("bn1", "BatchNorm2d", 64, 128, 0),
    ]
    for i in range(3):
        name = f"encoder.layers.encoder_layer_{i}.mlp.linear_1"
        facts.append(LayerFacts(name, "NonDynamicallyQuantizableLinear", width, 768 * width, 151_296 * width))
        facts.append(LayerFacts(f"encoder.layers.encoder_layer_{i}.norm", "LayerNorm", 768, 1536, 0))
    return (*facts, LayerFacts("heads.head", "Linear", 1000, 769_000, 768_000))


def report() -> Report:
    return compare(
        ModelFacts(layers(3072), 31_000_000),
        ModelFacts(layers(1500), 16_000_000),
        title="net.pt",
        units=Change(9216, 4500),
        accuracy=(Accuracy(10_000, 0.3, 0.926), Accuracy(10_000, 0.5, 0.881)),
        parity=(
            ParityCheck("structure", 2.1e-15, 1e-9, "float64"),
            ParityCheck("numbers", 3e-7, 1e-4, "float32"),
        ),
        onnx=OnnxCheck(3.1e-7, (1,), False, 20, ("The batch size is fixed at 1.",)),
        files=(
            WrittenFile("net.pruned.safetensors", 16_001_234, "ab" * 32),
            WrittenFile("net.pruned.json", 900, "c"),
        ),
        settings={"method": "taylor-fo", "keep": 0.5, "seed": 0, "ignore": []},
    )


def trained() -> Report:
    """Return the report of a run in two phases, of which the second was stopped early."""
    phases = (
        PhaseFacts(
            "pruning and fine-tuning", 8, 0.4321, 4500, 4_240_000, 800_000_000, 0.93, 0.41, 0.862, 0.871
        ),
        PhaseFacts(
            "recovery 1", 3, 0.3, 4500, 4_240_000, 800_000_000, 0.95, 0.4, 0.881, 0.884, None, ("stopped",)
        ),
    )
    rows = tuple(EpochRow(each + 1, phases[each // 8].name, 0.01, 0.4) for each in range(11))
    return replace(
        report(),
        training=TrainingFacts(
            "iterative",
            256,
            phases,
            rows,
            {"every": 30, "steps": 10},
            {"epochs": 25, "lr": 0.01, "augment": "crop,flip"},
            {"prunings": 10, "budget_met": True},
        ),
    )


def printed(width: int, shown: Report | None = None) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, no_color=True, force_terminal=False)
    render_report(shown or report(), console, {Path("out/net.pruned.safetensors"): 16_001_234})
    return stream.getvalue()


@pytest.mark.parametrize("width", (100, 80))
def test_report(width: int, golden: Callable[[str, str], None]) -> None:
    text = printed(width)
    golden(f"report-{width}.txt", text)
    table = text.split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= width


def masked() -> Report:
    """Return the report of a network that lost weights, all of those of one layer."""
    facts = ModelFacts(layers(3072), 31_000_000)
    counts = {"conv1.weight": (9408, 9408)} | {
        f"{layer.name}.weight": (kept, 768 * 3072)
        for layer, kept in zip(facts.layers[2::2], (173_012, 26_210, 0), strict=False)
    }
    return compare(
        facts,
        facts,
        title="net.pt",
        masks=mask_facts(counts, facts, ratio=8.0),
        settings={"method": "snip", "budget": "ratio=8", "seed": 0},
    )


@pytest.mark.parametrize("width", (100, 80))
def test_a_report_of_masks(width: int, golden: Callable[[str, str], None]) -> None:
    text = printed(width, masked())
    golden(f"report-masked-{width}.txt", text)
    assert max(map(len, text.splitlines())) <= width


def test_the_warning_of_a_collapse_is_loud() -> None:
    stream = io.StringIO()
    render_report(masked(), Console(file=stream, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[1;31mwarning: \x1b[0m" in stream.getvalue()


@pytest.mark.parametrize("width", (100, 80))
def test_a_report_of_training(width: int, golden: Callable[[str, str], None]) -> None:
    text = printed(width, trained())
    golden(f"report-trained-{width}.txt", text)
    assert max(map(len, text.splitlines())) <= width


def test_training_in_markdown(golden: Callable[[str, str], None]) -> None:
    golden("report-trained.md", to_markdown(trained()))


def test_a_pipe_gets_everything(golden: Callable[[str, str], None]) -> None:
    text = printed(render.UNLIMITED)
    golden("report-pipe.txt", text)
    assert "encoder.layers.encoder_layer_2.mlp.linear_1" in text
    assert "..." not in text


@pytest.mark.parametrize("width", (10, 40, 60, 79, 120))
def test_numbers_are_never_cut(width: int) -> None:
    columns = layer_columns(report())
    lines = [line.plain for line in table_lines(columns, width)]
    for column in columns[2:5]:
        assert all(any(cell.strip() in line for line in lines) for cell in column.cells)


def test_columns_go_in_order_of_worth_once_names_are_folded() -> None:
    columns = layer_columns(report())
    titles = {width: [column.title for column in fit(columns, width)] for width in (200, 80, 70, 10)}
    assert titles[200] == ["layer", "type", "units", "params", "MACs", "share"]
    assert titles[10] == ["layer", "units", "params", "MACs"]
    assert titles[80][0] == titles[70][0] == "layer"
    assert len(titles[200]) >= len(titles[80]) >= len(titles[70])


def test_fold_keeps_both_ends() -> None:
    assert fold("short", 10) == "short"
    assert fold("0123456789", 7) == "01...89"
    assert len(fold("x" * 50, 16)) == 16


def test_folded_names_stay_different() -> None:
    names = tuple(f"blocks.{i}.attention.projection_of_the_values.inner" for i in range(200))
    (column,) = fit([Column("layer", names, is_name=True)], 30)
    assert len(set(column.cells)) == 200
    assert column.cells[157] == "blocks.157.att..._values.inner"


def test_lists_are_folded_before_names() -> None:
    group = Column("group", ("features.2.0.block.2.fc1",), is_name=True)
    (name, cut_in) = fit(
        [group, Column("cut in", ("features.2.0.block.2.fc1, " * 3,), is_list=True, is_name=True)], 60
    )
    assert name.cells == ("features.2.0.block.2.fc1",)
    assert len(cut_in.cells[0]) <= 34


def test_a_list_loses_its_end() -> None:
    table = Table("", ("group", "cut in"), (("conv1", "conv1, bn1, conv2"),), lists=("cut in",))
    assert [column.is_list for column in tables._columns(table)] == [False, True]
    assert fold_list("conv1, bn1, conv2", 17) == "conv1, bn1, conv2"


def test_paragraphs_break_between_words_and_stay_right_of_their_lead() -> None:
    lines = [line.plain for line in paragraph("one two three four five", 20, ("note:  ", "bold"))]
    assert lines == ["note:  one two three", "       four five"]
    assert [line.plain for line in paragraph("a" * 40, 20)] == ["a" * 40]
    assert [line.plain for line in paragraph("", 20)] == [""]


def test_an_empty_table_has_its_titles() -> None:
    assert [line.plain for line in table_lines([Column("a", ()), Column("b", ())])] == ["a  b", "----"]


def test_names_carry_no_escape_codes_or_markup() -> None:
    evil = (LayerFacts("\x1b[31mred[bold]", "Conv2d", 8, 8, 8),)
    stream = io.StringIO()
    facts = ModelFacts(evil, 1)
    render_report(compare(facts, facts, title="[red]x\x1b]0;t\x07"), Console(file=stream, width=100))
    assert "\x1b" not in stream.getvalue()
    assert "red[bold]" in stream.getvalue()
    assert "[red]x" in stream.getvalue()


@pytest.mark.parametrize(
    ("environment", "width", "colour"),
    (
        ({}, render.UNLIMITED, False),
        ({"COLUMNS": "90"}, 90, False),
        ({"COLUMNS": "x"}, render.UNLIMITED, False),
        ({"FORCE_COLOR": "1"}, render.UNLIMITED, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, render.UNLIMITED, False),
    ),
)
def test_the_console_of_a_pipe(
    environment: dict[str, str], width: int, colour: bool, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = stdout_console()
    assert (console.width, console.is_terminal) == (width, colour)
