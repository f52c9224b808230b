"""The edge: streams, exit codes, and the one or two lines that an error is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prunecli.cli.main import run

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_models"
MLP = str(SAMPLES / "digits_mlp" / "model.pt")
RESNET = str(SAMPLES / "digits_resnet" / "model.safetensors")


def prunecli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "prunecli", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=variables)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    (
        (("prune", MLP, "--kep", "0.5"), 2, "No such option: --kep. Did you mean `--keep`?"),
        (("prone", MLP), 2, "No such command 'prone'. Did you mean 'prune'?"),
        (("prune",), 2, "Name a checkpoint, or say `--at-init --spec SPEC`"),
        (("prune", MLP, "--device", "gpu"), 2, "'gpu' is not one of 'auto', 'cpu', 'cuda', 'mps'"),
        (("prune", MLP, "--format", "tabel"), 2, "'csv', 'md'. Did you mean `table`?"),
        (("prune", MLP, "--target", "mac=0.5"), 2, "`mac=0.5` is no budget. Did you mean `macs`?"),
        (
            ("prune", MLP, "--keep", "0.5", "--data", "npx:a.npz"),
            4,
            "is no source of samples. Did you mean `npz:`?",
        ),
        (
            ("sweep", MLP, "--method", "random@layr", "--keep", "0.5"),
            2,
            "`layr` is no scope. Did you mean `layer`?",
        ),
        (("inspect", MLP.replace("model.pt", "modle.pt")), 4, "modle.pt`. Did you mean `"),
        (("inspect", MLP, "--spec", MLP.replace("model.pt", "modle.toml")), 4, "model.toml`?"),
        (("prune", MLP), 2, "Say how much may stay: `--keep 0.5`"),
        (
            ("prune", MLP, "--keep", "0.5", "--target", "macs=0.5"),
            2,
            "`--keep` and `--target` are two budgets",
        ),
        (("prune", MLP, "--keep", "1.5"), 2, "share of units to keep is above 0 and at most 1"),
        (("prune", MLP, "--keep", "0.5", "--apply", "p.json"), 2, "`--apply` brings its own decision"),
        (("prune", MLP, "--keep", "0.5", "--method", "tailor-fo"), 2, "Did you mean `taylor-fo`?"),
        (("prune", MLP, "--keep", "0.5", "--method", "magnitude", "--method", "random"), 2, "one `--method`"),
        (("prune", MLP, "--keep", "0.5", "--keep-layer", "conv1"), 2, "write PATTERN=SHARE"),
        (
            ("prune", MLP, "--keep", "0.5", "--scores", "s.safetensors", "--method", "taylor-fo"),
            2,
            "`--method` does nothing beside `--scores`, which are measured already. Leave it out.",
        ),
        (
            ("prune", MLP, "--apply", "p.json", "--method", "magnitude"),
            2,
            "`--method` does nothing beside `--a",
        ),
        (
            ("prune", MLP, "--apply", "p.json", "--round-to", "8"),
            2,
            "`--round-to` does nothing beside `--apply`",
        ),
        (
            ("prune", MLP, "--keep", "0.5", "--recovery-samples", "64"),
            2,
            "`--recovery-samples` does nothing without `--reconstruct` or `--recalibrate-bn`. Leave it out.",
        ),
        (
            ("prune", MLP, "--keep", "0.5", "--out", "x.pt"),
            2,
            "name a folder, or a file that ends in .safetensors",
        ),
        (("score", MLP, "--method-arg", "x"), 2, "write NAME=VALUE"),
        (("score", "nowhere.pt", "--method", "tailor-fo"), 2, "Did you mean `taylor-fo`?"),
        (("prune", "nowhere.pt", "--keep", "0.5", "--method-arg", "x=1"), 2, "No argument `x`"),
        (("score", MLP, "--out", "scores.pt"), 2, "ends in .safetensors"),
        (("export", MLP), 2, "Nothing to write"),
        (("export", MLP, "--loader", "never_written.py"), 2, "`--loader` is for a file that prunecli wrote"),
        (("methods", "tailor-fo"), 2, "Did you mean `taylor-fo`?"),
        (("inspect", "nowhere.pt"), 4, "nowhere.pt"),
        (("prune", MLP, "--apply", "nowhere.json"), 4, "`nowhere.json` cannot be read"),
        (("compress-report", MLP), 4, "is no report"),
        (("prune", MLP, "--target", "params=0.01", "--min-keep", "0.9"), 5, "cannot be met"),
    ),
)
def test_errors_are_short_and_say_what_to_do(
    arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(list(arguments)) == code
    out, err = capsys.readouterr()
    assert not out
    lines = err[err.index("error: ") :].strip().splitlines()
    assert message in " ".join(lines)
    assert len(lines) <= 2


def test_an_absent_device_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert run(["score", MLP, "--device", "cuda"]) == 2
    assert "`--device cuda`: this PyTorch sees only cpu" in capsys.readouterr().err


def test_a_bug_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("a\nb")

    monkeypatch.setattr("prunecli.pipeline.methods.all_methods", broken)
    assert run(["methods"]) == 1
    assert capsys.readouterr().err == (
        "error: internal error: TypeError: a\nThis is a bug in prunecli; `--debug` shows where.\n"
    )


def test_a_full_memory_is_no_bug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("prunecli.pipeline.methods.all_methods", large)
    assert run(["methods"]) == 1
    assert capsys.readouterr().err.startswith("error: The memory is full; nothing was left half written.")


def test_a_path_that_no_system_has_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "x" * 300, "--out", "new.toml"]) == 4
    assert capsys.readouterr().err == f"error: `{'x' * 300}` cannot be used: file name too long.\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "nowhere.pt", "--debug"]) == 4
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupt_is_one_line_and_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunecli.pipeline.methods.all_methods", interrupted)
    assert run(["methods"]) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was left half written\n"


def test_results_go_to_stdout_and_the_rest_to_stderr() -> None:
    done = prunecli("inspect", RESNET, "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["params"] == 174_970
    assert {group["name"]: group["width"] for group in found["groups"]}["conv1"] == 16
    assert "all tensors match" in done.stderr


def test_a_closed_pipe_ends_quietly() -> None:
    command = f"{sys.executable} -m prunecli inspect {RESNET} -q | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model.safetensors: ")


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    (
        (">&-", 0, ""),
        (">/dev/full", 4, "error: Standard output cannot be written: no space left on device.\n"),
    ),
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_takes_nothing(redirection: str, code: int, message: str) -> None:
    command = f"{sys.executable} -m prunecli methods {redirection}"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.parametrize(("variables", "coloured"), (({}, False), ({"FORCE_COLOR": "1"}, True)))
def test_colour_only_where_it_is_wanted(variables: dict[str, str], coloured: bool) -> None:
    environment = {"NO_COLOR": "", "FORCE_COLOR": "", **variables}
    assert ("\x1b[" in prunecli("inspect", "nowhere.pt", **environment).stderr) is coloured


@pytest.mark.parametrize("arguments", (("inspect", MLP), ("methods",)), ids=" ".join)
def test_tables(
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    golden: Callable[[str, str], None],
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(list(arguments)) == 0
    golden(f"{arguments[0]}.txt", capsys.readouterr().out)


@pytest.mark.parametrize("style", ("csv", "md", "json"))
@pytest.mark.parametrize("command", (("inspect", MLP), ("score", MLP, "--method", "magnitude"), ("methods",)))
def test_every_result_has_every_format(
    command: tuple[str, ...], style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--format", style]) == 0
    out = capsys.readouterr().out
    if style == "json":
        assert json.loads(out)["version"] == 1
    else:
        assert out.count("," if style == "csv" else "|") > 5


def test_score_shows_units(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("--method", "magnitude", "--method", "random")
    assert run(["score", MLP, *methods, "--units", "--format", "csv"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "group,unit,magnitude,random"
    assert len(rows) == 384


def test_prune_quietly_prints_only_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "magnitude", "--keep", "0.5", "--no-onnx", "--out", str(tmp_path), "-q"]
    assert run(["prune", MLP, *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'model.pruned.safetensors'}\n"
    assert not err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.pruned.json",
        "model.pruned.safetensors",
    ]


def test_prune_replaces_nothing_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prune", MLP, "--method", "magnitude", "--keep", "0.5", "--no-onnx", "--out", str(tmp_path)]
    assert run(arguments) == 0
    before = (tmp_path / "model.pruned.safetensors").read_bytes()
    assert run(arguments) == 4
    assert "is there already" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0
    assert (tmp_path / "model.pruned.safetensors").read_bytes() == before


def test_dry_run_writes_nothing_but_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    assert (
        run(["prune", MLP, "--method", "magnitude", "--keep", "0.5", "--dry-run", "--plan", str(plan)]) == 0
    )
    assert "192/384" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [plan]


def test_a_dry_run_says_that_it_recovers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", MLP, "--method", "magnitude", "--keep", "0.5", "--dry-run", "--reconstruct"]) == 0
    expected = "dry run: no model is made, so nothing is re-solved or recalibrated\n"
    assert expected in capsys.readouterr().err


def test_a_folder_may_have_a_dot_in_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "half_0.5"
    assert (
        run(["prune", MLP, "--method", "magnitude", "--keep", "0.5", "--no-onnx", "-q", "--out", str(folder)])
        == 0
    )
    assert capsys.readouterr().out == f"{folder / 'model.pruned.safetensors'}\n"


def test_a_quiet_dry_run_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", MLP, "--method", "magnitude", "--keep", "0.5", "--dry-run", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "method", "recovery"),
    (
        ((), "fisher", "reconstruct"),
        (("--method", "taylor-fo"), "taylor-fo", "reconstruct"),
        (("--no-reconstruct",), "fisher", None),
        (("--recalibrate-bn",), "fisher", "recalibrate-bn"),
    ),
)
def test_a_preset_leaves_alone_what_is_given(
    options: tuple[str, ...],
    method: str,
    recovery: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ("--preset", "best", "--keep", "0.5", "--samples", "64", "--no-onnx", "--out", str(tmp_path))
    assert run(["prune", MLP, *common, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["method"] == method
    assert (told["recovery"] or {}).get("method") == recovery


def test_the_table_names_every_path_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    arguments = ["--method", "magnitude", "--keep", "0.5", "--no-onnx", "--out", str(tmp_path)]
    assert run(["prune", MLP, *arguments, "--plan", str(tmp_path / "plan.json")]) == 0
    out, err = capsys.readouterr()
    assert all(f"{path} (" in out for path in tmp_path.iterdir())
    assert "wrote" not in err
    assert run(["prune", MLP, *arguments, "--force", "--json"]) == 0
    assert f"wrote {tmp_path / 'model.pruned.json'}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ("prune", "finetune"))
def test_a_misspelt_checkpoint_is_told_before_outputs_that_are_there(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = {"prune": "pruned", "finetune": "finetuned"}[command]
    (tmp_path / f"net.{done}.safetensors").touch()
    budget = ["--keep", "0.5"] if command == "prune" else []
    assert run([command, str(tmp_path / "net.pt"), *budget]) == 4
    assert "There is no file" in capsys.readouterr().err
