from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from prunecli.errors import InputError
from prunecli.report import (
    Accuracy,
    Change,
    Environment,
    LayerFacts,
    ModelFacts,
    Notice,
    OnnxCheck,
    ParityCheck,
    Report,
    WrittenFile,
    compare,
    to_csv,
    to_markdown,
)
from prunecli.report.headline import verdict
from prunecli.report.numbers import milliseconds

BEFORE = ModelFacts(
    (
        LayerFacts("stem", "Conv2d", 64, 1728, 1_769_472),
        LayerFacts("norm", "BatchNorm2d", 64, 128, 0),
        LayerFacts("attention", "Attention", None, 300, 500_000),
        LayerFacts("head", "Linear", 10, 650, 640),
    ),
    parameter_bytes=11224,
)
AFTER = ModelFacts(
    (
        LayerFacts("stem", "Conv2d", 5, 135, 138_240),
        LayerFacts("norm", "BatchNorm2d", 5, 10, 0),
        LayerFacts("attention", "SizedAttention", None, 200, 400_000),
        LayerFacts("head", "Linear", 10, 60, 50),
    ),
    parameter_bytes=1620,
)


def full() -> Report:
    """Return a report in which everything is known."""
    return compare(
        BEFORE,
        replace(AFTER, not_counted=("_trilinear at stem",)),
        title="net.pt",
        units=Change(64, 5),
        accuracy=(Accuracy(360, 0.1, 0.975, 1.0), Accuracy(360, 0.25, 0.95, 0.99)),
        parity=(
            ParityCheck("structure", 2.1e-15, 1e-9, "float64"),
            ParityCheck("numbers", 3e-7, 1e-4, "float32"),
        ),
        onnx=OnnxCheck(3.1e-7, (1, 2, 3), True, 20),
        files=(WrittenFile("net.pruned.safetensors", 2048, "ab" * 32),),
        settings={"method": "taylor-fo", "keep": 0.5, "ignore": []},
        statistics_changed=("norm",),
        random_data=True,
        environment=Environment("cpu", {"torch": "2.15.0"}),
    )


def test_layers_are_matched_by_name() -> None:
    report = full()
    stem, attention = report.layers[0], report.layers[2]
    assert (stem.units, stem.params, stem.macs) == (
        Change(64, 5),
        Change(1728, 135),
        Change(1_769_472, 138_240),
    )
    assert (attention.kind, attention.units) == ("Attention", None)
    assert report.totals.params == Change(2806, 405)
    assert report.totals.macs == Change(2_270_112, 538_290)
    assert report.totals.parameter_bytes == Change(11224, 1620)


def test_a_layer_without_arithmetic_that_is_folded_has_no_units_left_to_tell_of() -> None:
    norm = LayerFacts("bn", "BatchNorm2d", 16, 32, 0, 1024)
    report = compare(ModelFacts((norm,), 128), ModelFacts((), 0), title="x")
    assert report.layers[0].units is report.layers[0].activation_bytes is None
    assert report.layers[0].params == Change(32, 0)


def test_layers_of_one_model_only_count_nothing_in_the_other() -> None:
    gone, new = LayerFacts("gone", "Linear", 4, 16, 16), LayerFacts("new", "Linear", 2, 8, 8)
    report = compare(ModelFacts((gone,), 64), ModelFacts((new,), 32), title="x")
    assert [(layer.name, layer.units, layer.params) for layer in report.layers] == [
        ("gone", Change(4, 0), Change(16, 0)),
        ("new", Change(0, 2), Change(0, 8)),
    ]


def test_what_is_odd_becomes_a_warning() -> None:
    assert [(notice.kind, notice.text) for notice in full().warnings] == [
        ("random-data", "The samples are made up: scores and accuracy say nothing of real data."),
        ("near-collapse", "Less than 10% of the units are left: stem 5/64. See `--min-keep`."),
        ("odd-width", "1 of 1 widths cut are no multiple of 8: stem 5/64. See `--round-to`."),
        ("statistics", "A normalisation or mean runs over units removed: norm. Fine-tune."),
        ("not-counted", "MACs not counted: _trilinear at stem."),
    ]
    assert compare(BEFORE, BEFORE, title="x").warnings == ()


def test_long_lists_are_cut_short() -> None:
    names = [f"layer{i}" for i in range(9)]
    before = ModelFacts(tuple(LayerFacts(name, "Conv2d", 64, 1, 1) for name in names), 4)
    after = ModelFacts(tuple(LayerFacts(name, "Conv2d", 63, 1, 1) for name in names), 4)
    (notice,) = compare(before, after, title="x").warnings
    assert notice.text.startswith("9 of 9 widths cut are no multiple of 8: layer0 63/64, ")
    assert "layer3 63/64 and 5 more." in notice.text


def test_a_report_survives_the_round_trip() -> None:
    assert Report.from_json(full().to_json()) == full()
    small = compare(BEFORE, AFTER, title="x")
    assert Report.from_json(small.to_json()) == small


def with_fields(**fields: object) -> str:
    return json.dumps(json.loads(full().to_json()) | fields)


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("no json", r"`r.json` is not JSON \(.*\)\. Expected a report"),
        ("[1]", "`r.json` has no valid `version` number"),
        (with_fields(version=2), "`r.json` has version 2, but this prunecli reads up to 1. Update prunecli"),
        (with_fields(layers=[{"name": "a"}]), r"`r.json`: `layers\[0\].kind`: missing field"),
        (with_fields(totals=None), "`totals`: found None, expected an object"),
    ),
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Report.from_json(text, "r.json")


def test_csv_has_exact_numbers() -> None:
    rows = list(csv.DictReader(to_csv(full()).splitlines()))
    assert [row["layer"] for row in rows] == ["stem", "norm", "attention", "head"]
    assert rows[0]["macs_before"] == "1769472"
    assert (rows[2]["units_before"], rows[2]["units_after"]) == ("", "")
    assert sum(float(row["macs_share"]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_markdown(golden: Callable[[str, str], None]) -> None:
    golden("report.md", to_markdown(full()))


def test_markdown_is_capped_and_names_are_harmless() -> None:
    layers = tuple(LayerFacts(f"l{i}|<b>\x1b[31m_", "Conv2d", 8, 8, 8) for i in range(30_000))
    text = to_markdown(compare(ModelFacts(layers, 1), ModelFacts(layers, 1), title="<script>"))
    assert len(text) < 510_000
    assert "<summary>29980 more layers, " in text
    assert "<b>" not in text
    assert "<script>" not in text
    assert "\x1b" not in text
    assert r"| l0\|&lt;b&gt; \[31m\_ |" in text


@pytest.mark.parametrize("number", ("NaN", "Infinity", "1e999"))
def test_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    facts = ModelFacts((), 0)
    accuracy = Accuracy(1, loss=0.5)
    text = compare(facts, facts, title="net.pt", accuracy=(accuracy, accuracy)).to_json()
    with pytest.raises(InputError, match="is not JSON"):
        Report.from_json(text.replace('"loss": 0.5', f'"loss": {number}'))


def test_markdown_makes_what_a_file_says_of_its_proof_harmless() -> None:
    facts = ModelFacts((), 0)
    report = compare(
        facts,
        facts,
        title="net.pt",
        parity=[ParityCheck("[a](http://b)<img>", 1e-9, 1e-9, "float64")],
        warnings=[
            Notice("x", "[a](http://b) was cut. See `--min_keep`."),
            Notice("x", "`` ` [a](http://b) `"),
        ],
    )
    text = to_markdown(report)
    assert "](" not in text.replace("\\]", "")
    assert "<img>" not in text
    assert "See `--min_keep`." in text
    assert "| layer |" not in text  # of a model without layers


def test_long_times_and_small_changes_are_written_plainly() -> None:
    before = ModelFacts((LayerFacts("a", "Conv2d", 8, 100_000, 100_000),), 400_000)
    after = ModelFacts((LayerFacts("a", "Conv2d", 8, 99_999, 99_999),), 399_996)
    assert verdict(compare(before, after, title="net.pt")).startswith(
        "Less than 0.1% of the MACs and less than 0.1% of the params are gone"
    )
    assert milliseconds(1234.5) == "1,234 ms"
