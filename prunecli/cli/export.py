"""`prunecli export`: a checkpoint, pruned or not, in other forms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.options import CheckpointPath, Said, with_options
from prunecli.cli.streams import write_result
from prunecli.pipeline.settings import Source

if TYPE_CHECKING:
    from prunecli.pipeline.export import Exported

NAME = "export"
EXAMPLES = """Examples:
  prunecli export model.pruned.safetensors --onnx model.onnx
  prunecli export model.pruned.safetensors --loader load_pruned.py"""

PANEL = "Files"
Onnx = Annotated[
    str | None,
    typer.Option(
        help="Write an ONNX file with a free batch size, checked against PyTorch.",
        metavar="FILE",
        rich_help_panel=PANEL,
    ),
]
Safetensors = Annotated[
    str | None,
    typer.Option(
        help="Write a prunecli file, which `prunecli.load` reads.", metavar="FILE", rich_help_panel=PANEL
    ),
]
HuggingFace = Annotated[
    str | None,
    typer.Option(
        "--hf",
        help="Write a folder that `from_pretrained` of transformers reads, for layers that were cut alike.",
        metavar="FOLDER",
        rich_help_panel=PANEL,
    ),
]
Loader = Annotated[
    str | None,
    typer.Option(
        help="Write a Python file that loads the pruned model with torch and safetensors alone.",
        metavar="FILE",
        rich_help_panel=PANEL,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace files that are there already.", metavar="", rich_help_panel=PANEL),
]


@with_options
def command(
    checkpoint: CheckpointPath,
    source: Source,
    shown: Said,
    onnx: Onnx = None,
    safetensors: Safetensors = None,
    hf: HuggingFace = None,
    loader: Loader = None,
    force: Force = False,
) -> None:
    """Write a checkpoint as ONNX, as safetensors, or a stand-alone loader for a pruned file."""
    from prunecli.cli.progress import reporting
    from prunecli.pipeline.export import Targets, export

    with reporting(shown) as reporter:
        exported = export(checkpoint, Targets(onnx, safetensors, loader, hf), source, force, reporter)
    write_result("\n".join(map(str, exported.files)) if shown.quiet else render(exported, shown))


def render(exported: Exported, shown: Said) -> str:
    """Return the result in the form asked for."""
    from prunecli.cli.tables import Table, to_csv, to_markdown, to_terminal
    from prunecli.strict_json import to_plain

    table = Table(
        "Files", ("file", "bytes"), tuple((str(path), path.stat().st_size) for path in exported.files)
    )
    check = exported.onnx
    closing = []
    if check is not None:
        closing = [f"onnxruntime agrees with PyTorch to {check.error:.1e} (relative)", *check.notes]
    match shown.style:
        case "json":
            files = [{"name": path.name, "size": path.stat().st_size} for path in exported.files]
            return json.dumps({"version": 1, "files": files, "onnx": to_plain(check)}, indent=2)
        case "csv":
            return to_csv(table)
        case "md":
            return to_markdown([table], f"## {exported.checkpoint}", closing)
        case "table":
            return to_terminal([table], exported.checkpoint, closing)
