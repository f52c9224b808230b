"""Run under torchrun: several command lines one after the other, and what each came to, by rank.

Called with a folder that holds `commands.json`: a list of lists of arguments. What is written as
`{rank}` there is the rank. Leaves `RANK.json`: a list of [exit code, standard output, standard error].
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch.distributed as distributed

from prunecli.cli import voices
from prunecli.cli.main import run
from prunecli.errors import PeerError
from prunecli.pipeline.processes import joined

SILENCE = 2.0


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
