"""Gates over the figures of a report: how they are written, what they look up, what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.cli.main import run
from prunecli.errors import UsageError
from prunecli.report import Accuracy, Change, LayerChange, Notice, Report, Totals, to_markdown
from prunecli.report.gates import check_gates, figures_of, parse_gate

LAYER = LayerChange("conv1", "Conv2d", Change(16, 8), Change(160, 80), Change(1000, 400))
REPORT = Report(
    title="net.pt",
    layers=(LAYER,),
    totals=Totals(Change(200, 100), Change(1000, 400), Change(800, 400), Change(16, 8)),
    accuracy_before=Accuracy(100, 0.5, top1=0.9),
    accuracy_after=Accuracy(100, 0.75, top1=0.875),
    settings={"seed": 3, "method": "magnitude"},
    warnings=(Notice("odd-width", "one"),),
)


def test_figures_are_found_by_short_names_and_by_paths() -> None:
    figures = figures_of(REPORT)
    short = {"macs_ratio": 0.4, "params_ratio": 0.5, "size_ratio": 0.5, "units_ratio": 0.5, "warnings": 1.0}
    assert {name: figures[name] for name in short} == short
    assert figures["top1_drop"] == pytest.approx(2.5)
    assert figures["loss_rise"] == 0.25
    assert figures["totals.macs.after"] == 400
    assert figures["layers.conv1.units.ratio"] == 0.5
    assert figures["settings.seed"] == 3
    assert "top5_drop" not in figures
    assert "settings.method" not in figures


@pytest.mark.parametrize(
    ("text", "holds"),
    (
        ("macs_ratio>0.4", True),
        ("macs_ratio>=0.4", False),
        ("macs_ratio < 41%", False),
        ("top1_drop>2.4", False),
        ("warnings!=0", False),
        ("warnings==2", True),
        ("totals.params.after<=1e2", False),
        ("loss_rise > -1", False),
        ("totals.macs.after>1_000", True),
    ),
)
def test_a_gate_fails_if_the_figure_stands_so(text: str, holds: bool) -> None:
    (verdict,) = check_gates(REPORT, [parse_gate(text)])
    assert verdict.holds is holds
    assert verdict.text.startswith("ok: " if holds else "FAILED: ")
    assert text in verdict.text


@pytest.mark.parametrize(
    "text",
    ("macs_ratio", "macs_ratio>", ">1", "a>b", "macs_ratio=1", "macs_ratio>1>2", "__import__('os')", ""),
)
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write FIGURE, one of >= <= == != > <, and a number"):
        parse_gate(text)


@given(st.text(max_size=30))
def test_any_text_is_a_gate_or_refused(text: str) -> None:
    try:
        gate = parse_gate(text)
    except UsageError:
        return
    assert gate.name in text


def test_an_unknown_figure_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no figure `mac_ratio`.*`macs_ratio`"):
        check_gates(REPORT, [parse_gate("mac_ratio>1")])


def test_the_command_says_each_check_and_exits_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.json"
    path.write_text(REPORT.to_json(), encoding="utf-8")
    asked = [
        "compress-report",
        str(path),
        "--json",
        "--fail-if",
        "macs_ratio>0.5",
        "--fail-if",
        "top1_drop>1",
    ]
    assert run(asked) == 3
    shown = capsys.readouterr()
    assert shown.out == REPORT.to_json()
    assert "ok: macs_ratio is 0.4; fails if macs_ratio>0.5" in shown.err
    assert "FAILED: top1_drop is 2.5; fails if top1_drop>1" in shown.err
    assert "1 of 2 checks failed." in shown.err
    assert run([*asked, "--exit-zero"]) == 0
    assert run(["compress-report", str(path), "--exit-zero"]) == 2
    assert run(["compress-report", str(path), "--fail-if", "macs_ratio>0.5"]) == 0


def test_the_summary_of_a_job_gets_the_checks_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, summary = tmp_path / "net.json", tmp_path / "summary.md"
    path.write_text(REPORT.to_json(), encoding="utf-8")
    summary.write_text("# Before\n", encoding="utf-8")
    asked = ["compress-report", str(path), "--github-summary", "--fail-if", "macs_ratio>0.3"]
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert run(asked) == 2
    assert "`GITHUB_STEP_SUMMARY` names, and it is not set here" in capsys.readouterr().err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert run(asked) == 3
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("# Before\n- FAILED: macs_ratio is 0.4; fails if macs_ratio>0.3\n")
    assert to_markdown(REPORT) in text
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert run(asked) == 4
