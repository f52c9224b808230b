"""A checkpoint and `--out` -> the paths of the files that `prune` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunecli.errors import UsageError
from prunecli.pipeline.settings import Choices, Files, Source

_FILES = frozenset({".pt", ".pth", ".onnx", ".json", ".bin", ".ckpt"})
"""Suffixes of files that `--out` cannot mean; any other may be part of a folder's name, as in `half_0.5`."""


@dataclass(frozen=True)
class Paths:
    """Where the files go; None where one is not wanted."""

    run: Path
    """The folder in which a training run is kept."""
    model: Path | None = None
    onnx: Path | None = None
    report: Path | None = None
    plan: Path | None = None

    @property
    def wanted(self) -> tuple[Path, ...]:
        """Those that will be written, the model first."""
        return tuple(path for path in (self.model, self.onnx, self.report, self.plan) if path is not None)


def named_after(checkpoint: str | None, source: Source) -> Path:
    """Return what files are named after: the checkpoint, or the spec of a new model.

    Raises:
        UsageError: there is neither.

    >>> named_after(None, Source(spec="torchvision:resnet18")).name
    'resnet18.new'
    """
    if checkpoint is not None:
        return Path(checkpoint)
    if source.spec is None:
        raise UsageError("Say how to build the model: `--spec net.toml`, or `--spec torchvision:resnet18`.")
    is_file = source.spec.endswith(".toml")
    return Path(source.spec if is_file else f"{source.spec.rpartition(':')[2]}.new")


def choose_paths(checkpoint: Path, choices: Choices, done: str) -> Paths:
    """Return where the files go: beside the checkpoint, or where `--out` says.

    Args:
        checkpoint: what the files are named after.
        choices: what is wanted.
        done: what happened to it, for the names: `pruned`, `finetuned`, `trained`.

    Raises:
        UsageError: `--out` is neither a folder nor a .safetensors path.
    """
    plan = Path(choices.decision.plan) if choices.decision.plan is not None else None
    stem = _stem(checkpoint, choices.files, done)
    run = stem.with_name(f"{stem.name}.run")
    if choices.decision.dry_run:
        return Paths(run, plan=plan)
    return Paths(
        run,
        model=stem.with_name(f"{stem.name}.safetensors"),
        onnx=stem.with_name(f"{stem.name}.onnx") if choices.files.onnx else None,
        report=stem.with_name(f"{stem.name}.json"),
        plan=plan,
    )


def _stem(checkpoint: Path, files: Files, done: str) -> Path:
    if not checkpoint.name:
        raise UsageError(f"`{checkpoint}` is no file: the path of the checkpoint is empty.")
    default = f"{checkpoint.name if checkpoint.is_dir() else checkpoint.stem}.{done}"
    if files.out is None:
        return checkpoint.with_name(default)
    out = Path(files.out)
    if out.suffix == ".safetensors" and not out.is_dir():
        return out.with_name(out.name.removesuffix(".safetensors"))
    if out.suffix.lower() in _FILES and not out.is_dir():
        raise UsageError(f"`--out {out}`: name a folder, or a file that ends in .safetensors.")
    return out / default
