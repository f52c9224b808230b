"""What must answer at once: help, version, completion and the bare import load no heavy package."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy", "scipy", "safetensors", "timm"}
COMMANDS = ("inspect", "score", "prune", "sweep", "export", "methods", "compress-report", "doctor", "init")


def loaded_by(code: str) -> set[str]:
    """Return the heavy packages that a fresh Python has loaded after running the code."""
    report = f"import sys\n{code}\nprint('loaded:', *sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("loaded: "), done.stderr
    return set(last.removeprefix("loaded: ").split()) & HEAVY


def run(*arguments: str) -> str:
    """Return code that runs a command and swallows its exit."""
    return (
        f"sys.argv = ['prunecli', *{arguments!r}]\n"
        "from prunecli.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


@pytest.mark.parametrize(
    "arguments", (("--help",), ("--version",), *((command, "--help") for command in COMMANDS)), ids=" ".join
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(run(*arguments))


def test_completion_loads_nothing_heavy() -> None:
    environment = {"_PRUNECLI_COMPLETE": "complete_bash", "COMP_WORDS": "prunecli ins", "COMP_CWORD": "1"}
    assert not loaded_by(f"import os\nos.environ.update({environment!r})\n{run()}")


def test_pruning_does_without_statistics() -> None:
    code = "import prunecli.pipeline.prune, prunecli.cli.tables\nassert 'scipy.stats' not in sys.modules"
    assert "torch" in loaded_by(code)


def test_the_front_door_loads_nothing_heavy() -> None:
    assert not loaded_by("import prunecli\ndir(prunecli)")


def test_the_front_door_opens_when_used() -> None:
    assert "torch" in loaded_by("import prunecli\nprunecli.load_model")
