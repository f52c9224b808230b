"""A spec whose relative paths start from one folder -> the same spec, seen from another."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from prunecli.spec.model_spec import FactoryKind, ModelSpec, Reference, is_absolute

_FILE_SCHEMES = ("npz", "imagefolder", "idx")


def rebase(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Return the spec with its relative paths rewritten so that they start from `folder`.

    A pruned file is written beside its checkpoint or elsewhere; the spec inside must find the same code
    and data from there.

    >>> spec = ModelSpec("net.py:build", base=Path("models/mine"))
    >>> rebase(spec, Path("models/out")).factory
    '../mine/net.py:build'
    """
    here, there = spec.base.resolve(), folder.resolve()
    if here == there:
        return spec

    def moved(path: str) -> str:
        return path if is_absolute(path) else Path(os.path.relpath(here / path, there)).as_posix()

    def source(text: str | None) -> str | None:
        scheme, colon, rest = (text or "").partition(":")
        if text and colon and scheme in _FILE_SCHEMES:
            return f"{scheme}:{','.join(moved(path) for path in rest.split(','))}"
        return code(text) if text else None

    def code(text: str) -> str:
        is_file = ".py:" in text and Reference.parse(text.partition("[")[0]).kind is FactoryKind.FILE
        return moved(text) if is_file else text

    granted = frozenset(filter(None, map(source, spec.granted)))
    data = replace(
        spec.data, sample=source(spec.data.sample), train=source(spec.data.train), test=source(spec.data.test)
    )
    task = replace(spec.task, loss=code(spec.task.loss))
    return replace(spec, factory=code(spec.factory), data=data, task=task, base=folder, granted=granted)
