"""Completion: by the protocols of bash, zsh and fish, from what is installed, without importing it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunecli.cli import completion
from prunecli.cli.completion import behind_colon, choices, files, mend_words
from prunecli.pipeline.methods import all_methods
from prunecli.pipeline.presets import PRESETS
from prunecli.pipeline.schedules import all_schedules

ROOT = Path(__file__).parents[2]
LOADED = "import sys\nfrom prunecli.cli.main import main\ntry:\n    main()\nfinally:\n    "
LOADED += "print(*sys.modules, file=sys.stderr)"


def complete(shell: str, line: str, folder: Path = ROOT) -> list[str]:
    """Return what a shell would be offered for a line typed so far; no heavy package may be loaded for it."""
    asked = {"_PRUNECLI_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(ROOT)}
    if shell == "bash":  # which takes words apart at colons
        words = line.replace(":", " : ").split(" ")
        words = words[:-1] if line.endswith(":") else words
        asked |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **asked}
    )
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "torchvision", "timm"} & set(done.stderr.splitlines()[-1].split())
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("line", "offered"),
    (
        ("prunecli insp", ["inspect"]),
        ("prunecli prune m.pt --quie", ["--quiet"]),
        ("prunecli prune m.pt --method bn", ["bn-scale", "bn-scale-taylor"]),
        ("prunecli sweep m.pt --method taylor-fo,lam", ["taylor-fo,lamp"]),
        ("prunecli train --schedule it", ["iterative"]),
        ("prunecli prune m.pt --preset be", ["best"]),
        ("prunecli prune m.pt --format ", ["table", "json", "csv", "md"]),
        ("prunecli prune m.pt --device c", ["cpu", "cuda"]),
        ("prunecli prune m.pt --target ", ["macs=", "params=", "units="]),
        ("prunecli methods fp", ["fpgm"]),
        ("prunecli schedules im", ["imp"]),
        ("prunecli prune m.pt --spec torchvision:resnet1", ["resnet18", "resnet101", "resnet152"]),
        ("prunecli prune m.pt --spec sample_models/digits_m", ["sample_models/digits_mlp/model.toml"]),
        ("prunecli prune samp", []),  # bash offers files
    ),
)
def test_bash(line: str, offered: list[str]) -> None:
    assert complete("bash", line) == offered


@pytest.mark.parametrize("shell", ("zsh", "fish"))
def test_other_shells(shell: str) -> None:
    imp, *others = complete(shell, "prunecli train --schedule im")
    assert "imp" in imp
    assert "Train, set the smallest weights to zero" in imp
    assert not others
    assert "resnet18" in complete(shell, "prunecli prune m.pt --spec torchvision:resnet18")[0]


def test_bash_itself_offers_them(tmp_path: Path) -> None:
    program = tmp_path / "prunecli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m prunecli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = (
        f"PATH={tmp_path}:$PATH\n"
        'eval "$(_PRUNECLI_COMPLETE=source_bash prunecli)"\n'
        "COMP_WORDS=(prunecli prune m.pt --spec torchvision : resnet1); COMP_CWORD=6\n"
        "$(complete -p prunecli | sed 's/.*-F \\([^ ]*\\).*/\\1/') prunecli\n"
        'echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout, done.stderr) == ("resnet18 resnet101 resnet152\n", "")


def test_every_method_schedule_and_preset_is_offered() -> None:
    assert {name for name, _ in completion.method_names("")} == {info.name for info in all_methods()}
    assert {name for name, _ in completion.schedule_names("")} == {info.name for info in all_schedules()}
    assert {name for name, _ in completion.preset_names("")} == set(PRESETS)
    assert all(len(text) <= 60 for _, text in completion.method_names(""))
    assert dict(completion.method_names(""))["fpgm"].startswith("Sum of the distances between")


def test_architectures_are_those_that_can_be_built() -> None:
    import torchvision

    found = {name.partition(":")[2] for name, _ in completion.specs("torchvision:")}
    assert found == set(torchvision.models.list_models())


def test_architectures_of_timm_are_those_that_can_be_built() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    found = {name.partition(":")[2] for name, _ in completion.specs("timm:")}
    assert set(timm.list_models()) <= found
    assert len(found) < 1.1 * len(timm.list_models())


def test_a_package_that_is_not_there_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "find_spec", lambda name: None)
    assert completion.specs("timm:") == []


def test_files_are_offered_by_how_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("net.toml", "net.pt", "plan.json", "deep/other.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in completion.specs("n")] == ["net.toml"]
    assert [name for name, _ in completion.specs("d")] == ["deep/other.toml"]
    assert [name for name, _ in completion.specs("deep/")] == ["deep/other.toml"]
    assert [name for name, _ in completion.specs("a")] == ["auto"]
    assert [name for name, _ in files(".json")("")] == ["plan.json"]
    assert files(".json")("nowhere/") == []
    assert [name for name, _ in choices("a", "ab", "b")("a")] == ["a", "ab"]


@pytest.mark.parametrize(
    ("words", "at", "mended", "is_behind"),
    (
        ("prunecli\n--spec\ntimm\n:\nres", 4, "prunecli\n--spec\ntimm:res", True),
        ("prunecli\n--spec\ntimm\n:", 3, "prunecli\n--spec\ntimm:", True),
        ("prunecli\n--spec\na\n:\nb\n--keep\n", 6, "prunecli\n--spec\na:b\n--keep\n", False),
        ("prunecli\nins", 1, "prunecli\nins", False),
        ("prunecli\n--spec\n=\ntimm\n:\nres", 5, "prunecli\n--spec\ntimm:res", True),
        ("prunecli\n--method\n=\nbn", 3, "prunecli\n--method\nbn", False),
        ("prunecli\n--method\n=", 2, "prunecli\n--method\n", False),
        ('prunecli\n--spec\n"timm:res', 2, 'prunecli\n--spec\n"timm:res', False),
        ("prunecli\n--spec\n'timm:res", 2, "prunecli\n--spec\n'timm:res", False),
    ),
)
def test_words_are_put_together_again(words: str, at: int, mended: str, is_behind: bool) -> None:
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(at)}
    assert mend_words(environment) is is_behind
    assert environment == {"COMP_WORDS": mended, "COMP_CWORD": str(mended.count("\n"))}


def test_bash_gets_what_stands_behind_the_colon() -> None:
    assert behind_colon("timm:a\ntimm:b\n") == "a\nb"
