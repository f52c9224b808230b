"""Several processes under torchrun: start them; and, run by them, several command lines one after the other.

Called with a folder that holds `commands.json`: a list of lists of arguments. What is written as
`{rank}` there is the rank. Leaves `RANK.json`: a list of [exit code, standard output, standard error].
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch.distributed as distributed

from prunecli.cli import voices
from prunecli.cli.main import run
from prunecli.errors import PeerError
from prunecli.pipeline.processes import joined

SILENCE = 2.0
ROOT = Path(__file__).parents[1]
PATIENCE = 300
"""Seconds for all that processes do; they take ten or twenty on an idle machine."""
Told = dict[str, list[Any]]
"""Command -> [exit code, standard output, standard error]."""


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start so many processes, and wait for their end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    with subprocess.Popen(
        command, stdout=PIPE, stderr=PIPE, text=True, env=environment, start_new_session=True
    ) as agent:
        try:
            out, err = agent.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(agent.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, agent.returncode, out, err)


def run_several(commands: Mapping[str, list[str]], folder: Path, count: int) -> tuple[Told, Told]:
    """Run commands in so many processes; return what each came to, in the first of them and in the last."""
    (folder / "commands.json").write_text(json.dumps(list(commands.values())))
    done = torchrun(count, str(Path(__file__)), str(folder))
    assert done.returncode == 0, done.stderr
    names = (*commands, "silent")
    first, last = (
        dict(zip(names, json.loads((folder / f"{rank}.json").read_text()), strict=True))
        for rank in (0, count - 1)
    )
    return first, last


def main(folder: Path) -> None:
    """Run all commands, and then fall silent in all processes but the first."""
    voices.GRACE = 0.0
    distributed.init_process_group("gloo")  # once: torchrun's processes meet once
    distributed.init_process_group = distributed.destroy_process_group = lambda *_, **__: None
    rank = os.environ["RANK"]
    commands = json.loads((folder / "commands.json").read_text())
    found = [told([word.replace("{rank}", rank) for word in command]) for command in commands]
    found.append([0, unheard(rank), ""])
    (folder / f"{rank}.json").write_text(json.dumps(found))


def told(arguments: list[str]) -> list[object]:
    """Return what a command line came to."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments)
    return [code, out.getvalue(), err.getvalue()]


def unheard(rank: str) -> str:
    """Return what the first process says of others that live and say nothing."""
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=SILENCE))
    try:
        with joined(timedelta(seconds=SILENCE)) as processes:
            if rank != "0":
                time.sleep(2 * SILENCE)
            processes.agree({"silence": True})
    except PeerError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
