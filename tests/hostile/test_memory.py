"""The worst files, read in a process that may hold little: it ends by a refusal, not for want of memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from prunecli.export.from_onnx import describe_onnx, read_onnx
from tests.hostile.corpus import CASES
from tests.hostile.forged import nest
from tests.hostile.seeds import plant
from tests.hostile.test_corpus import put

WORST = (
    "checkpoint: endless header",
    "checkpoint: product of huge sizes",
    "checkpoint: repeated values",
    "checkpoint: a zip bomb",
    "checkpoint: text of lists of text",
    "checkpoint: codes of codes",
    "checkpoint: a memo without end",
    "pruned file: labels without end",
    "folder: words",
    "data: a claim",
    "data: a zip bomb",
)
MOST_BYTES = 3 * 2**30
"""PyTorch alone maps about two GiB."""
SCRIPT = """
import resource, sys
from prunecli.cli.main import run
import torch, torchvision, onnxruntime, prunecli.pipeline.prune
code = run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", WORST)
def test_the_worst_files_take_little_memory(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    plant(tmp_path)
    path = put(case, tmp_path)
    command = [part.replace("FILE", path.name) for part in case.commands[0]]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES)),
    )
    assert done.returncode == case.code, done.stderr
    assert int(done.stdout.split()[-1]) < 1_500_000  # KiB held at most


def test_branches_inside_branches_take_no_longer_than_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(nest(28))
    assert describe_onnx(read_onnx(tmp_path / "a.onnx")).params == 0
