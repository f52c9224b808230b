"""What masks leave, counted by hand, and how reports show it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace

import pytest

from prunecli.report import (
    LayerFacts,
    MaskedLayer,
    ModelFacts,
    Report,
    TrainingFacts,
    compare,
    mask_facts,
    to_csv,
    to_markdown,
)

MODEL = ModelFacts(
    (
        LayerFacts("conv1", "Conv2d", 20, 520, 288_000),
        LayerFacts("bn1", "BatchNorm2d", 20, 40, 0),
        LayerFacts("attention", "MultiheadAttention", None, 1_600, 64_000),
        LayerFacts("fc", "Linear", 10, 5_010, 5_000),
    ),
    parameter_bytes=28_680,
)
COUNTS = {
    "conv1.weight": (50, 500),
    "attention.q_proj_weight": (100, 400),
    "attention.k_proj_weight": (0, 400),
    "attention.v_proj_weight": (20, 400),
}


def masked(counts: dict[str, tuple[int, int]] = COUNTS, **said: object) -> Report:
    """Return the report of a model of which nothing but weights left."""
    facts = mask_facts(counts, MODEL, **{"ratio": 2.0, **said})  # type: ignore[arg-type]
    return compare(MODEL, MODEL, title="net.pt", settings={"method": "snip", "seed": 0}, masks=facts)


def test_counts_are_summed_over_a_layer() -> None:
    facts = mask_facts(COUNTS, MODEL)
    assert facts.layers == (MaskedLayer("conv1", 50, 500), MaskedLayer("attention", 120, 1200))
    assert (facts.kept, facts.size) == (170, 1700)
    assert facts.collapsed == ()
    assert facts.macs == 28_800 + 6_400 + 5_000  # a tenth of two layers; the third in full


@pytest.mark.parametrize(
    ("base", "effective"), (("whole", 7170 / (7170 - 1530)), ("prunable", 10.0)), ids=("whole", "prunable")
)
def test_the_effective_ratio_is_of_its_base(base: str, effective: float) -> None:
    facts = mask_facts(COUNTS, MODEL, ratio=12.0, base=base)
    assert facts.effective_ratio == pytest.approx(effective)
    assert facts.compression_error == pytest.approx((12 - effective) / 12)
    assert mask_facts(COUNTS, MODEL, base=base).compression_error is None


def test_where_nothing_is_left_there_is_no_ratio_and_json_still_holds_it() -> None:
    report = masked({"conv1.weight": (0, 500)}, base="prunable")
    assert report.masks is not None
    assert (report.masks.effective_ratio, report.masks.compression_error) == (None, None)
    assert Report.from_json(report.to_json()) == report
    assert "weights: 500 -> 0 (of the prunable weights: r 2.0, r_e without end)" in to_markdown(report)


def test_a_collapse_is_the_first_warning() -> None:
    names = [f"layer{i}" for i in range(6)]
    facts = mask_facts({f"{name}.weight": (0, 9) for name in names}, MODEL)
    warnings = compare(MODEL, MODEL, title="x", masks=facts, random_data=True).warnings
    assert [notice.kind for notice in warnings] == ["collapse", "random-data"]
    assert warnings[0].text == (
        "No weight is left in layer0, layer1, layer2, layer3 and 2 more: nothing passes through them. "
        "See `--min-keep`, `--scope layer` or `--no-collapse`."
    )
    (alone,) = masked({"conv1.weight": (0, 500)}).warnings
    assert alone.text.startswith("No weight is left in conv1: nothing passes through it. ")
    assert masked().warnings == ()


def test_csv_has_the_weights() -> None:
    text = to_csv(masked())
    assert ",macs_share,weights_kept,weights_size," in text.splitlines()[0]
    rows = {
        row["layer"]: (row["weights_kept"], row["weights_size"]) for row in csv.DictReader(text.splitlines())
    }
    assert rows == {"conv1": ("50", "500"), "bn1": ("", ""), "attention": ("120", "1200"), "fc": ("", "")}


def test_markdown(golden: Callable[[str, str], None]) -> None:
    report = masked({**COUNTS, "fc.weight": (0, 5000)}, pattern="2:4", semi_structured="skipped: no GPU")
    golden("report-masked.md", to_markdown(report))


def test_units_join_the_weights_where_they_left_too() -> None:
    small = replace(MODEL, layers=(replace(MODEL.layers[0], units=10), *MODEL.layers[1:]))
    both = compare(MODEL, small, title="x", masks=mask_facts(COUNTS, small))
    assert "| layer | type | units | weights | left | params | MACs | share |" in to_markdown(both)
    assert "| layer | type | weights | left | params | MACs | share |" in to_markdown(masked())
    assert "| layer | type | units | params | MACs | share |" in to_markdown(replace(both, masks=None))


def test_the_layers_of_a_model_that_was_trained_under_masks_are_shown() -> None:
    trained = replace(masked(), training=TrainingFacts("none", 64))
    assert "| conv1 | Conv2d | 50/500 | 10.0% |" in to_markdown(trained)
    assert "| conv1 |" not in to_markdown(replace(trained, masks=None))
