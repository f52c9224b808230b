"""What is said of a model whose weights were masked: by `prune`, and by `compress-report` of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunecli.cli.main import run
from prunecli.pipeline.comparing import compare_checkpoints
from prunecli.pipeline.compress_report import read_report
from prunecli.report import Report

CNN = Path(__file__).parents[2] / "sample_models" / "digits_cnn" / "model.pt"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a file with one parameter in eight left."""
    out = tmp_path / "cnn.safetensors"
    asked = ("--granularity", "weight", "--method", "magnitude", "--ratio", "8", "--no-onnx", "-q")
    assert run(["prune", str(CNN), *asked, "--device", "cpu", "--out", str(out)]) == 0
    return out


def test_both_count_the_weights_that_are_left(written: Path) -> None:
    told = read_report(str(written.with_suffix(".json")))
    compared = compare_checkpoints([str(CNN), str(written)])
    for report in (told, compared):
        assert report.masks is not None
        assert report.masks.effective_ratio == pytest.approx(8, abs=0.001)
        assert report.masks.size == 288 + 9216 + 18432 + 36864 + 16384
        assert report.masks.collapsed == ()
        assert report.totals.params.before == report.totals.params.after
    assert told.masks is not None
    assert compared.masks is not None
    assert told.masks.layers == compared.masks.layers
    for masks in (told.masks, compared.masks):
        assert (masks.ratio, masks.base) == (8.0, "whole")


def test_zeros_in_the_file_are_as_many_as_the_report_says(written: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(written)
    report = compare_checkpoints([str(CNN), str(written)])
    assert report.masks is not None
    for layer in report.masks.layers:
        assert int(tensors[f"{layer.name}.weight"].count_nonzero()) == layer.kept


@pytest.mark.parametrize("style", ("table", "md", "csv", "json"))
def test_every_form_has_them(style: str, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress-report", str(CNN), str(written), "--format", style]) == 0
    text = capsys.readouterr().out
    match style:
        case "json":
            masks = Report.from_json(text).masks
            assert masks is not None
            assert json.loads(text)["masks"]["layers"][0] == {"name": "features.0", "kept": 213, "size": 288}
        case "csv":
            assert ",213,288," in text
        case _:
            assert "213/288" in text
            assert "81,184 -> 9,187" in text


def test_a_collapse_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gone.safetensors"
    asked = (
        "--granularity",
        "weight",
        "--method",
        "magnitude",
        "--ratio",
        "20000",
        "--ratio-base",
        "prunable",
    )
    assert run(["prune", str(CNN), *asked, "--device", "cpu", "--no-onnx", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "(of the prunable weights: r 20000.0, r_e 20296.0, error -1.5 %)" in " ".join(text.split())
    assert "collapsed features.0, features.3, features.7, features.10" in text
    first = next(line for line in text.splitlines() if line.startswith("warning: "))
    assert first.startswith("warning: No weight is left in features.0, features.3, features.7, features.10")
