"""How `prunecli inspect` shows a checkpoint without a spec, and `prunecli init` what it wrote."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunecli.architectures import Match, Near
from prunecli.cli import render
from prunecli.cli.contents import render_contents
from prunecli.cli.main import run
from prunecli.cli.options import Shown
from prunecli.pipeline.contents import Contents, TensorFacts

RESNET = Match("torchvision:resnet18", {"num_classes": 10}, "module.")
HOSTILE = "<script>alert(1)</script>/../../etc\x1b[31m\x1b]8;;http://x\x07\nerror: \u202egnp.weight"


def contents(count: int = 3, **changes: object) -> Contents:
    """Return the contents of a file, made up."""
    tensors = tuple(
        TensorFacts(f"module.layer{i % 5}.{i // 5}.weight", (i + 1, 3), "float32", 3 * i + 3, 12 * i + 12, 0)
        for i in range(count)
    )
    known: dict[str, object] = {
        "checkpoint": "net.pt",
        "sha256": "ab" * 32,
        "format": "torch zip",
        "key": "state_dict",
        "prefix": "module.",
        "file_bytes": 12_345,
        "tensors": tensors,
        "others": ("epoch", "optimizer"),
        "metadata": {},
        "matches": (RESNET, Match("timm:resnet18", {"num_classes": 10}, "module.")),
        "near": (),
        "choice": RESNET,
        "compared_with": "torchvision 0.29, timm 1.0",
    }
    return Contents(**{**known, **changes})  # type: ignore[arg-type]


UNKNOWN = contents(
    2,
    key=None,
    others=(),
    metadata={"format": "pt", "note": "one\n two"},
    matches=(),
    choice=None,
    near=(Near(("torchvision:resnet18", "timm:resnet18"), "all but `fc`, which is another"),),
    tensors=(
        TensorFacts("scale", (), "float16", 1, 2, 1),
        TensorFacts("fc.weight", (10, 4), "float32", 40, 160, 0),
    ),
)


@pytest.mark.parametrize(
    ("name", "found"), (("contents-known.txt", contents()), ("contents-unknown.txt", UNKNOWN))
)
def test_text(name: str, found: Contents, golden: Callable[[str, str], None]) -> None:
    golden(name, render_contents(found, Shown(), "some nets/net.pt"))


def test_a_terminal_gets_modules_where_there_are_many_tensors(
    monkeypatch: pytest.MonkeyPatch, golden: Callable[[str, str], None]
) -> None:
    monkeypatch.setattr(render.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    golden("contents-modules-80.txt", render_contents(contents(100), Shown(), "net.pt"))
    everything = render_contents(contents(100), Shown(all=True), "net.pt")
    assert everything.count("module.layer") >= 100


def test_twins_are_all_suggested() -> None:
    text = render_contents(contents(choice=None), Shown(), "net.pt")
    assert "fits      each of torchvision:resnet18 with num_classes=10, timm:resnet18 with num" in text
    assert text.count("prunecli inspect net.pt --spec") == 2


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """Return a file with a name in it that wants to be more than a name."""
    path = tmp_path / "net.safetensors"
    save_file({HOSTILE: torch.zeros(2, 3)}, path, {"x\x1b[2J": "y\x1b[31m<script>"})
    return str(path)


@pytest.mark.parametrize("form", ("table", "md", "csv", "json"))
def test_hostile_names_are_only_shown(form: str, hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", hostile, "--format", form]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not [line for line in text.splitlines() if line.startswith("error:")]
    assert form != "md" or "<script>" not in text


def test_a_spreadsheet_gets_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "net.pt")
    assert run(["inspect", str(tmp_path / "net.pt"), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["tensor"], row["shape"], row["bytes"]) for row in rows] == [
        ("weight", "2x4", "32"),
        ("bias", "2", "8"),
    ]


def test_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": nn.Linear(4, 2).state_dict(), "epoch": 3}, tmp_path / "net.pt")
    assert run(["inspect", str(tmp_path / "net.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["factory"], found["key"], found["others"]) == (
        1,
        None,
        "model",
        ["epoch"],
    )
    assert found["tensors"][0]["shape"] == [2, 4]
    assert (found["matches"], found["choice"]) == ([], None)


def test_init_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(4, 2).state_dict(), "net.pt")
    assert run(["init", "net.pt", "-q"]) == 0
    assert capsys.readouterr().out == "net.toml\n"
    assert run(["init", "net.pt"]) == 4
    assert "`net.toml` is there already" in capsys.readouterr().err
    assert run(["init", "net.pt", "--out", "other", "--data", "random:8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["is_known"], found["input"]) == ("net.toml", False, [[4]])
    assert found["data"]["sample"] == "random:8"
    for form in ("table", "md", "csv"):
        assert run(["init", "net.pt", "--force", "--format", form]) == 0
        text = capsys.readouterr().out
        assert "model.py:build (fill in)" in text
        assert ("Fill in the factory, then: `prunecli inspect net.pt`" in text) == (form != "csv")
