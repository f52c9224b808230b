"""Gates over the figures of a report: how they are written, what they look up, what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.cli.main import run
from prunecli.errors import UsageError
from prunecli.report import (
    Accuracy,
    Change,
    ComparedModel,
    LatencyFacts,
    LayerChange,
    LayerFacts,
    ModelFacts,
    Notice,
    Report,
    Timing,
    Totals,
    compare,
    to_markdown,
)
from prunecli.report.gates import changes_since, check_gates, figures_of, parse_gate
from prunecli.report.headline import cards, verdict
from prunecli.report.models_text import latency_text

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
        ("top1_drop > 3%", True),
        ("top1_drop > 2%", False),
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


@pytest.mark.parametrize(
    ("text", "limit"),
    (
        ("macs_ratio>baseline", 0.4),
        ("macs_ratio > baseline*105%", 0.42),
        ("macs_ratio>baseline * 1.5", 0.6),
        ("macs_ratio>baseline+0.1", 0.5),
        ("macs_ratio>baseline -1e-1", 0.3),
    ),
)
def test_a_limit_may_follow_a_baseline(text: str, limit: float) -> None:
    (verdict,) = check_gates(REPORT, [parse_gate(text)], REPORT)
    assert verdict.baseline == 0.4
    assert verdict.gate.limit(0.4) == pytest.approx(limit)
    assert verdict.holds is (limit >= 0.4)
    assert f"is 0.4 (baseline 0.4); fails if {text}, that is {limit:.6g}" in verdict.text


@pytest.mark.parametrize(
    "text", ("macs_ratio>baseline*", "macs_ratio>baseline/2", "macs_ratio>2*baseline", "x>base")
)
def test_other_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write FIGURE, one of"):
        parse_gate(text)


def test_a_baseline_without_the_figure_is_named() -> None:
    bare = Report(title="net.pt", layers=(), totals=REPORT.totals)
    with pytest.raises(UsageError, match="the baseline has no figure `top1_drop`"):
        check_gates(REPORT, [parse_gate("top1_drop>baseline")], bare)


def test_what_changed_since_the_baseline_is_told() -> None:
    bare = Report(title="net.pt", layers=(), totals=Totals(Change(200, 100), Change(1000, 500), Change(8, 4)))
    assert changes_since(REPORT, bare) == [
        "macs_ratio: 0.5 -> 0.4",
        "params_ratio: 0.5 -> 0.5 (same)",
        "size_ratio: 0.5 -> 0.5 (same)",
        "warnings: 0 -> 1",
    ]


def test_what_shares_a_name_goes_by_its_place() -> None:
    layers = (LayerFacts("a conv<1>", "Conv2d", 8, 10, 100), LayerFacts("", "Net", None, 5, 0))
    facts = ModelFacts(layers, 60)
    models = [ComparedModel("net.pt", "torch zip", "ab", size, facts) for size in (100, 60)]
    figures = figures_of(compare(facts, facts, title="net", models=models))
    assert (figures["models[0].file_bytes"], figures["models[1].file_bytes"]) == (100, 60)
    assert figures["layers[0].macs.after"] == figures["layers.a conv<1>.macs.after"] == 100
    assert figures["layers[1].params.after"] == 5


@pytest.mark.parametrize(
    ("text", "name", "number"),
    (
        ("layers./conv1/Conv.macs.ratio > .5", "layers./conv1/Conv.macs.ratio", 0.5),
        ("layers.onnx::Conv 1.macs.after>=3", "layers.onnx::Conv 1.macs.after", 3),
        ("models[0].file_bytes<1_000", "models[0].file_bytes", 1000),
        ("macs_ratio > 55 %", "macs_ratio", 0.55),
    ),
)
def test_a_figure_may_have_any_name(text: str, name: str, number: float) -> None:
    gate = parse_gate(text)
    assert (gate.name, gate.number) == (name, number)


def test_latency_is_a_ratio_to_the_first_file_or_none() -> None:
    facts = ModelFacts((), 0)
    timing = Timing(1, 2, 3, 1.0)
    first, last = (
        ComparedModel("a.onnx", "ONNX", "ab", 1, facts),
        ComparedModel("b.pt", "torch zip", "cd", 1, facts, pytorch=timing, onnxruntime=timing),
    )
    report = compare(facts, facts, title="net", models=[first, last], latency=LatencyFacts(1, 1, "cpu", 1))
    assert not {"latency_ratio", "onnxruntime_ratio"} & set(figures_of(report))
    assert latency_text(report) == (
        "PyTorch 2 ms (b.pt alone); onnxruntime 2 ms (b.pt alone); batch 1, a single run, cpu, 1 thread"
    )
    assert verdict(report) == "Nothing was cut."
    assert not [card for card in cards(report) if card.label.startswith("Latency")]
    timed = replace(report, models=(replace(first, pytorch=Timing(1, 4, 5, 1.0)), last))
    assert figures_of(timed)["latency_ratio"] == 1.0


def test_a_limit_without_its_baseline_is_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress-report", "no.pt", "none.pt", "--fail-if", "macs_ratio>baseline"]) == 2
    assert "follows a baseline: name a report with `--baseline`" in capsys.readouterr().err
