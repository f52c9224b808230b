"""Write prune.svg: what `prunecli prune` prints on a terminal of 88 columns, as a picture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
COLUMNS = 88
COMMAND = "prunecli prune model.safetensors --preset best --target macs=0.5"


def printed() -> str:
    """Return what the command prints, with its colours."""
    model = ROOT / "sample_models" / "digits_resnet" / "model.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "prunecli", *COMMAND.split()[1:], "--out", folder]
        words[words.index("model.safetensors")] = str(model)
        environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        return done.stdout.replace(f"{folder}/", "")


def main() -> None:
    """Write the picture; nothing in it is fetched from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"\x1b[1m$ {COMMAND}\x1b[0m\n{printed()}"), soft_wrap=True)
    svg = console.export_svg(title="prunecli")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    path = Path(__file__).with_name("prune.svg")
    path.write_text(svg.replace("Fira Code", "ui-monospace, DejaVu Sans Mono"), encoding="utf-8")


if __name__ == "__main__":
    main()
