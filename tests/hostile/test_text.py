"""Names from files, as they reach a page, a table or a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunecli.cli.main import run
from prunecli.cli.streams import say, say_error, write_result
from prunecli.report import Report, to_markdown
from prunecli.report.page import report_page
from prunecli.report.sweep import SweepReport


def test_markup_in_a_report_stays_text(seeds: Path) -> None:
    text = (seeds / "net.pruned.json").read_text().replace("net.p", "<script>alert(1)</script>")
    report = Report.from_json(text)
    assert "<script>alert" in report.title + report.files[0].name
    assert "<script>alert" not in report_page(report)
    assert "<script>alert" not in to_markdown(report)


def test_a_sweep_that_asked_for_nothing_is_shown(seeds: Path) -> None:
    text = re.sub(r'"ratio": [\d.]+', '"ratio": 0', (seeds / "swept" / "net.sweep.json").read_text())
    assert '"ratio": 0' in text
    report = SweepReport.from_json(text)
    assert report.rows[0].compression_error is None
    assert report.trade_off


def test_halves_of_characters_are_written_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    write_result("a\ud800")
    say("b\udfff")
    assert capsys.readouterr() == ("a\\ud800\n", "b\\udfff\n")


def test_an_error_has_two_lines_and_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    say_error("a\nb\nc\nd\u202e\u200f\x1b[31m" + "e" * 5000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: a"
    assert lines[1].startswith("b c deee")
    assert len(lines) == 2
    assert len("".join(lines)) < 2100


def test_names_in_a_table_have_no_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"a\x1b[31m\u202eb": torch.ones(2)}, tmp_path / "a.pt")
    assert run(["inspect", "a.pt"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
