"""`compress-report` as a user runs it: every form from one file, gates with a baseline, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from prunecli.cli.main import run
from prunecli.cli.tables import report_text
from prunecli.report import Report

TESTS = Path(__file__).parents[1]
MLP = TESTS.parent / "sample_models" / "digits_mlp" / "model.pt"


def full_report() -> Report:
    """Return the report in which every field is filled."""
    return _load(TESTS / "report" / "full_report.py").full_report()


def _load(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "net.json"
    path.write_text(full_report().to_json(), encoding="utf-8")
    return path


def test_every_form_is_made_from_one_file(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = [tmp_path / f"out.{suffix}" for suffix in ("html", "md", "csv", "json")]
    outs = [text for path in forms for text in ("--out", str(path))]
    assert run(["compress-report", str(report), *outs]) == 0
    html, markdown, csv, again = (path.read_text(encoding="utf-8") for path in forms)
    assert Report.from_json(again) == Report.from_json(report.read_text(encoding="utf-8")) == full_report()
    shown = capsys.readouterr()
    assert shown.err.count("wrote ") == 4
    told = full_report()
    for layer in (each for each in told.layers if each.macs.before):
        for text in (html, csv, shown.out):
            assert layer.name in text
    for text in (html, markdown, shown.out):
        assert all(model.name in text.replace("\\", "") for model in told.models)
    assert csv.splitlines()[0].count(",") == csv.splitlines()[1].count(",")


@pytest.mark.parametrize("columns", (80, 100))
def test_the_table_of_a_full_report(
    columns: int, monkeypatch: pytest.MonkeyPatch, golden: Callable[[str, str], None]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    golden(f"report-full-{columns}.txt", report_text(full_report(), "table"))


@pytest.mark.parametrize("style", ("md", "csv"))
def test_the_other_texts_of_a_full_report(style: str, golden: Callable[[str, str], None]) -> None:
    golden(f"report-full.{style}", report_text(full_report(), style))


def test_a_limit_may_follow_an_earlier_run(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = full_report()
    macs = replace(told.totals.macs, after=told.totals.macs.after // 2)
    (tmp_path / "old.json").write_text(
        replace(told, totals=replace(told.totals, macs=macs)).to_json(), encoding="utf-8"
    )
    arguments = ["compress-report", str(report), "--baseline", str(tmp_path / "old.json"), "-q"]
    assert run([*arguments, "--fail-if", "macs_ratio>baseline*2.1"]) == 0
    assert run([*arguments, "--fail-if", "macs_ratio > baseline", "--fail-if", "warnings>baseline+1"]) == 3
    said = capsys.readouterr().err
    assert "since the baseline: macs_ratio: " in said
    assert "since the baseline: params_ratio: " in said
    assert "FAILED: macs_ratio is " in said
    assert "ok: warnings is " in said
    assert "1 of 2 checks failed" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    (
        (("--out", "report.pdf"), 2, "`--out report.pdf`: end it in .html, .md, .csv or .json."),
        (("--latency",), 2, "`--latency` measures models: name their files, not a report."),
        (("--latency-batch", "8"), 2, "`--latency-batch` does nothing without `--latency`."),
        (("--fail-if", "mac_ratio>1"), 2, "there is no figure `mac_ratio`. Did you mean `macs_ratio`?"),
        (("--fail-if", "macs_ratio>baseline"), 2, "follows a baseline: name a report with `--baseline`"),
        (("--baseline", str(MLP)), 4, "is no report"),
        (("--exit-zero",), 2, "`--exit-zero` does nothing without `--fail-if`"),
        (("--sweep", "missing.json"), 4, "`missing.json` cannot be read: no such file"),
    ),
)
def test_what_cannot_be_is_refused_in_one_line(
    report: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compress-report", str(report), *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_file_that_is_there_is_left_alone(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.html").write_text("mine")
    arguments = ["compress-report", str(report), "--out", str(tmp_path / "out.html"), "-q"]
    assert run(arguments) == 4
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "out.html").read_text() == "mine"
    assert run([*arguments, "--force"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.html'}\n"
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")


def test_checks_stand_in_the_page(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    arguments = ["compress-report", str(report), "--out", str(page), "-q", "--fail-if", "macs_ratio<1e9"]
    assert run(arguments) == 3
    assert "fails if macs_ratio&lt;1e9" in page.read_text(encoding="utf-8")


def test_two_files_are_compared_with_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress-report", str(MLP), str(MLP), "--latency", "--latency-runs", "2", "--threads", "1"]
    assert run([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["latency"] == {"batch_size": 1, "runs": 2, "device": "cpu", "threads": 1}
    assert data["models"][1]["onnxruntime"]["ratio"] > 0
