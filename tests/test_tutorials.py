"""The tutorials are run as they stand: their files are written, their commands given, their output compared.

With `--overwrite`, what the commands print is written into the pages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("tutorial.md", "ci.md", "onnx.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\S+\.\w+)\n")
NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?%?")
COLUMNS = "100"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and where that stands."""

    language: str
    text: str
    start: int
    end: int


def blocks(page: str) -> Iterator[Block]:
    for found in BLOCK.finditer(page):
        yield Block(found[1], found[2], found.start(2), found.end(2))


def commands_of(workflow: str) -> str:
    """Return what the steps of a GitHub workflow run, but those that install."""
    steps = re.findall(r"^ *- run: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", workflow, re.MULTILINE)
    lines = [line.strip() for many, one in steps for line in (many or one).splitlines()]
    return "\n".join(line for line in lines if not line.startswith("pip install"))


class Reader:
    """Someone who follows a page: in a folder of their own, where each block goes on from the last."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.here = folder
        (folder / "sample_models").mkdir()
        shutil.copytree(ROOT / "sample_models", folder / "sample_models", dirs_exist_ok=True)
        programs = folder / "programs"
        programs.mkdir()
        (programs / "prunecli").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m prunecli "$@"\n')
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        for program in programs.iterdir():
            program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": COLUMNS,
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        }

    def write(self, text: str) -> None:
        """Write a file that a block shows, if its first line names one."""
        if named := NAMED.match(text):
            (self.here / named[1]).write_text(text, encoding="utf-8")

    def run(self, text: str) -> str:
        """Run commands, all of which must succeed, and return what they print."""
        script = f"set -eo pipefail\n{text}\npwd > {self.folder}/where"
        done = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.here,
            env=self.environment,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        self.here = Path((self.folder / "where").read_text().strip())
        return done.stdout


def followed(page: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Do what a page says; yield each block of output with what was printed instead."""
    reader, printed = Reader(folder), ""
    for block in blocks(page):
        match block.language:
            case "python" | "toml":
                reader.write(block.text)
            case "sh":
                printed = reader.run(block.text)
            case "yaml":
                printed = reader.run(commands_of(block.text))
            case "text":
                yield block, printed


def alike(text: str) -> list[str]:
    """Return the words of an output, every number the same, without rules and without warnings at its end."""
    text = re.sub(r"\bsha256\s+[0-9a-f]{12}\b", "sha256 0", text)  # its letters depend on the machine
    text = re.split(r"^(?:- \*\*)?warning:", text, flags=re.MULTILINE)[0]
    return NUMBER.sub("#", re.sub(r"-{4,}", "", text)).split()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "tutorial.md" else ()) for name in PAGES]
)
def test_a_tutorial(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = ROOT / "docs" / name
    page = path.read_text(encoding="utf-8")
    found = list(followed(page, tmp_path))
    if request.config.getoption("--overwrite"):
        for block, printed in reversed(found):
            page = page[: block.start] + printed.rstrip("\n").removesuffix("\n") + "\n" + page[block.end :]
        path.write_text(page, encoding="utf-8")
        return
    for block, printed in found:
        assert alike(block.text) == alike(printed)


STAND_IN = """
import numpy as np, timm, torch, torchvision, transformers
from PIL import Image
from resnet import resnet20

draw = np.random.default_rng(0)
for name, size in (("cifar10_train.npz", 1000), ("cifar10_test.npz", 64)):
    images = draw.integers(0, 256, (size, 32, 32, 3), np.uint8)
    np.savez(name, images=images, labels=draw.integers(0, 10, size))
torch.save({"state_dict": {f"module.{k}": v for k, v in resnet20().state_dict().items()}}, "resnet20.th")
torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
torch.save(timm.create_model("mobilenetv3_large_100").state_dict(), "mobilenet.pt")
ids, mask = draw.integers(0, 20, (64, 8)), np.ones((64, 8), np.int64)
for name in ("texts.npz", "texts_test.npz"):
    np.savez(name, input_ids=ids, attention_mask=mask, labels=draw.integers(0, 3, 64))
config = transformers.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=24, max_position_embeddings=8, num_labels=3)
transformers.BertForSequenceClassification(config).save_pretrained("bert-folder")
for i in range(8):
    Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(f"val/{i % 2}/{i}.png")
"""
NETWORK = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, images):
        return (images + self.inner(images)).relu()


def resnet20():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 4), nn.BatchNorm2d(16), nn.ReLU(), Block(16), Block(16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )
"""


@pytest.mark.slow
def test_the_quickstart_of_the_readme(tmp_path: Path) -> None:
    """Run every command of the quickstart as it stands, on small stand-ins for someone's files."""
    for name in ("timm", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (quickstart,) = re.findall(r"^## Quickstart.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    reader = Reader(tmp_path)
    reader.here = tmp_path / "mine"
    for part in ("0", "1"):
        (reader.here / "val" / part).mkdir(parents=True)
    (reader.here / "resnet.py").write_text(NETWORK, encoding="utf-8")
    (reader.here / "make.py").write_text(STAND_IN, encoding="utf-8")
    reader.run("python make.py")
    shown = [block for block in blocks(quickstart) if block.language in ("toml", "sh", "python")]
    (spec,) = (block.text for block in shown if block.language == "toml")
    train = 'train = "npz:cifar10_train.npz"\nnormalize'  # which the text says to add, for training
    (reader.here / "resnet20.toml").write_text(spec.replace("normalize", train), encoding="utf-8")
    for block in shown:
        if block.language == "sh":
            reader.run(block.text)
        elif block.language == "python":
            (reader.here / "use.py").write_text(block.text, encoding="utf-8")
            reader.run("python use.py")
    assert {path.name for path in reader.here.glob("*.pruned.onnx")} == {
        "resnet20.pruned.onnx", "resnet18.pruned.onnx", "mobilenet.pruned.onnx", "bert-folder.pruned.onnx"
    }  # fmt: skip


def test_the_steps_of_a_workflow_are_its_commands() -> None:
    text = (
        "    steps:\n      - run: pip install x\n      - run: |\n          a 1\n          b\n      - run: c\n"
    )
    assert commands_of(text) == "a 1\nb\nc"


def test_numbers_may_differ_and_words_may_not() -> None:
    assert alike("MACs  1.5M -> 2") == alike("MACs 17.25M -> 3")
    assert alike("a 1") != alike("b 1")
