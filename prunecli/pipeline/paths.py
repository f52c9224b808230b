"""A checkpoint and `--out` -> the paths of the files that `prune` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunecli.errors import UsageError
from prunecli.pipeline.settings import Choices, Files


@dataclass(frozen=True)
class Paths:
    """Where the files go; None where one is not wanted."""

    model: Path | None = None
    onnx: Path | None = None
    report: Path | None = None
    plan: Path | None = None

    @property
    def wanted(self) -> tuple[Path, ...]:
        """Those that will be written, the model first."""
        return tuple(path for path in (self.model, self.onnx, self.report, self.plan) if path is not None)


def choose_paths(checkpoint: Path, choices: Choices) -> Paths:
    """Return where the files go: beside the checkpoint, or where `--out` says.

    Raises:
        UsageError: `--out` is neither a folder nor a .safetensors path.
    """
    plan = Path(choices.decision.plan) if choices.decision.plan is not None else None
    if choices.decision.dry_run:
        return Paths(plan=plan)
    stem = _stem(checkpoint, choices.files)
    return Paths(
        model=stem.with_name(f"{stem.name}.safetensors"),
        onnx=stem.with_name(f"{stem.name}.onnx") if choices.files.onnx else None,
        report=stem.with_name(f"{stem.name}.json"),
        plan=plan,
    )


def _stem(checkpoint: Path, files: Files) -> Path:
    default = f"{checkpoint.stem}.pruned"
    if files.out is None:
        return checkpoint.with_name(default)
    out = Path(files.out)
    if out.suffix == ".safetensors" and not out.is_dir():
        return out.with_name(out.name.removesuffix(".safetensors"))
    if out.suffix and not out.is_dir():
        raise UsageError(f"`--out {out}`: name a folder, or a file that ends in .safetensors.")
    return out / default
