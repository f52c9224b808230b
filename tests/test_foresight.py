"""The benchmark of masks without training, on a small network: what its tables count.

The full run is `benchmarks/foresight.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import foresight
from benchmarks.cifar.vgg import VGG
from benchmarks.foresight import Images, Network, main, rows_of
from prunecli.importance import ScoreBN
from prunecli.plan import Scope
from prunecli.report import MaskFacts

NAME = "small"
RATIOS = (2, 8)
STEPPED = (8,)


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {NAME: partial(VGG, (8, 0, 16, 0, 32, 0, 32, 0, 32))}
    monkeypatch.setattr(foresight, "NETWORKS", networks)


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(torch.randn(512, 3, 32, 32, generator=generator), torch.arange(512) % 10)


def found(data: Images | None) -> dict[str, list[MaskFacts | None]]:
    network = Network(NAME, 0, data, ScoreBN.EVAL, STEPPED)
    return {row.label: facts for row, facts in network.found(rows_of(with_slow=False), RATIOS)}


def test_exact_masks_compress_as_asked_and_two_sided_ones_of_signed_scores_do_not() -> None:
    every = found(images())
    assert {"`snip`", "`magnitude`", "`magnitude`, by layer", "`synflow`, steps=1"} <= set(every)
    assert not any("obd" in label for label in every)
    for label, facts in every.items():
        for ratio, each in zip(RATIOS, facts, strict=True):
            if each is None:
                assert (label, ratio) == ("`synflow`", 2)
            elif "two-sided" in label:
                assert each.effective_ratio is not None
                assert each.effective_ratio < 0.75 * ratio
            else:
                assert each.effective_ratio == pytest.approx(ratio, rel=0.01)


def test_methods_that_look_at_data_are_left_out_where_there_are_none() -> None:
    every = found(None)
    assert "`magnitude`" in every
    assert "`snip`" not in every
    assert {row.info.needs_data for row in rows_of(True) if row.label in every} == {False}


def test_every_method_has_a_row_and_some_one_by_layer() -> None:
    rows = rows_of(with_slow=True)
    assert {row.label for row in rows if row.selection.scope is Scope.LAYER} == {
        f"`{row.info.name}`, by layer" for row in rows if row.info.name in foresight.LAYERED
    }
    assert len({row.label for row in rows}) == len(rows)


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(512) % 10)
    chosen = ("--methods", "snip", "synflow", "--ratios", "2", "8", "--stepped-ratios", "8", "--seeds", "2")
    assert main((NAME, "--data", str(tmp_path / "images.npz"), *chosen)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "### small"
    assert lines[2] == "| method | r = 2 | r = 8 | largest error | thinnest layer |"
    assert [line.split(" | ")[:3] for line in lines[4:6]] == [
        ["| `snip`", "2", "8"],
        ["| `synflow`", "-", "8"],
    ]
    assert main((NAME, "--data", str(tmp_path / "absent.npz"), *chosen)) == 0
    told = capsys.readouterr()
    assert "is not there: methods that look at data are left out" in told.err
    assert "`snip`" not in told.out


def test_arguments_reach_the_methods_that_take_them() -> None:
    rows = rows_of(True, ("lap", "snip"), {"normalise": "true"})
    assert [row.label for row in rows] == [
        "`lap`, normalise=true",
        "`lap`, normalise=true, by layer",
        "`snip`",
    ]
