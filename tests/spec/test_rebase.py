"""Specs seen from another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunecli.spec import DataSpec, ModelSpec, TaskSpec, to_json_dict
from prunecli.spec.rebase import rebase


def spec_in(folder: Path) -> ModelSpec:
    data = DataSpec(sample="npz:../a.npz#train[:10]", train="idx:x,y", test="torchvision:MNIST?split=test")
    return ModelSpec("net.py:build", data=data, task=TaskSpec("loss.py:loss"), base=folder)


def test_every_path_is_rewritten(tmp_path: Path) -> None:
    moved = rebase(spec_in(tmp_path / "models" / "mine"), tmp_path / "out")
    assert moved.factory == "../models/mine/net.py:build"
    assert moved.data.sample == "npz:../models/a.npz#train[:10]"
    assert moved.data.train == "idx:../models/mine/x,../models/mine/y"
    assert moved.data.test == "torchvision:MNIST?split=test"
    assert moved.task.loss == "../models/mine/loss.py:loss"
    assert moved.base == tmp_path / "out"


def test_nothing_changes_in_the_same_folder(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    assert rebase(spec, tmp_path / "x" / "..") is spec


@pytest.mark.parametrize("folder", ("/srv/out", "/home/mallory/out"))
def test_a_way_through_the_root_or_other_homes_is_not_told(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/mallory")
    moved = rebase(spec_in(Path("/home/alice/models")), Path(folder))
    assert moved.factory == "net.py:build"
    assert moved.data.train == "idx:x,y"
    assert "alice" not in str(to_json_dict(moved))


def test_a_way_inside_ones_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert (
        rebase(spec_in(Path("/home/alice/models")), Path("/home/alice/out")).factory
        == "../models/net.py:build"
    )
