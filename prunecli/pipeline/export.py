"""The story of `export`: a checkpoint -> ONNX, safetensors, a Hugging Face folder, a stand-alone loader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from prunecli.errors import UsageError
from prunecli.export.files import Content, check_free, write_files
from prunecli.export.precision import narrowed
from prunecli.export.record import PrunedRecord
from prunecli.export.to_hugging_face import to_hugging_face
from prunecli.export.to_loader import write_loader
from prunecli.export.to_onnx import to_onnx
from prunecli.export.to_safetensors import to_bytes
from prunecli.model import example_inputs
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.opening import Opened, lineage_of, open_model, parents_of
from prunecli.pipeline.settings import Samples, Source
from prunecli.pipeline.versions import versions
from prunecli.report import OnnxCheck
from prunecli.spec import to_json_dict
from prunecli.spec.hugging_face import CONFIG
from prunecli.spec.rebase import rebase


@dataclass(frozen=True)
class Targets:
    """What to write; None = not."""

    onnx: str | None = None
    safetensors: str | None = None
    loader: str | None = None
    hf: str | None = None
    """A folder for `from_pretrained`."""

    @property
    def chosen(self) -> Mapping[str, Path]:
        """The kinds chosen, and their paths."""
        given = {"onnx": self.onnx, "safetensors": self.safetensors, "loader": self.loader}
        if self.hf is not None:
            given["hf"] = str(Path(self.hf) / CONFIG)
        return {kind: Path(path) for kind, path in given.items() if path is not None}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far onnxruntime is from PyTorch."""

    checkpoint: str
    files: tuple[Path, ...]
    onnx: OnnxCheck | None = None


def export(
    checkpoint: str,
    targets: Targets,
    source: Source | None = None,
    force: bool = False,
    listener: Listener | None = None,
) -> Exported:
    """Write a checkpoint, pruned or not, in other forms.

    Raises:
        UsageError: no target is named.
        ExportError: PyTorch cannot export the model to ONNX, or no `config.json` has its widths.
        ProofError: a file computes something else.
    """
    if not targets.chosen:
        raise UsageError(
            "Nothing to write. Name at least one of `--onnx`, `--safetensors`, `--hf` and `--loader`."
        )
    check_free(targets.chosen.values(), force)
    listener = listener or Silent()
    opened = open_model(checkpoint, source or Source(), Samples(), listener)
    contents: dict[Path, Content] = {}
    check = None
    if targets.onnx is not None:
        listener.progress("exporting to ONNX", 0, None)
        exported = to_onnx(opened.model, partial(example_inputs, opened.spec), lineage=lineage_of(opened))
        contents[Path(targets.onnx)], check = exported.content, exported.check
    if targets.safetensors is not None:
        path = Path(targets.safetensors)
        narrow = narrowed(opened.model, opened.came_in)
        contents[path] = to_bytes(opened.model, record_of(opened, path.parent), narrow)
    if targets.hf is not None:
        files = to_hugging_face(opened.model, opened.spec, opened.came_in)
        contents |= {Path(targets.hf) / name: content for name, content in files.items()}
    if targets.loader is not None:
        contents[Path(targets.loader)] = _loader(opened, Path(targets.loader)).encode()
    write_files(contents, force)
    return Exported(opened.name, tuple(contents), check)


def _loader(opened: Opened, path: Path) -> str:
    """Return the text of a loader at `path` for the pruned file that was opened.

    Raises:
        UsageError: it is no pruned file.
    """
    if opened.record is None:
        raise UsageError(f"`--loader` is for a file that prunecli wrote, and `{opened.name}` is none.")
    file = os.path.relpath(opened.file.path, path.parent)
    return write_loader(opened.record, opened.spec, Path(file).as_posix())


def record_of(opened: Opened, folder: Path) -> PrunedRecord:
    """Return what a file of this very model, written into `folder`, says of itself."""
    spec = to_json_dict(rebase(opened.spec, folder))
    if opened.record is not None:
        return replace(opened.record, spec=spec)
    return PrunedRecord(spec=spec, parents=parents_of(opened), versions=versions())
