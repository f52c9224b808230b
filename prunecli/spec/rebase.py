"""A spec whose relative paths start from one folder -> the same spec, seen from another."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from prunecli.spec.model_spec import ModelSpec, change_paths, is_absolute


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
        if is_absolute(path):
            return path
        whole = Path(os.path.normpath(here / path))
        return way_between(there, whole) or whole.name

    def changed(text: str | None) -> str | None:
        return change_paths(text, moved) if text else None

    data = replace(
        spec.data,
        sample=changed(spec.data.sample),
        train=changed(spec.data.train),
        test=changed(spec.data.test),
    )
    return replace(
        spec,
        factory=change_paths(spec.factory, moved),
        data=data,
        task=replace(spec.task, loss=change_paths(spec.task.loss, moved)),
        base=folder,
        granted=frozenset(change_paths(text, moved) for text in spec.granted),
    )


def way_between(folder: Path, path: Path) -> str | None:
    """Return the relative path; None where it would tell whose folders it crosses, or on another drive."""
    if folder.anchor != path.anchor:
        return None
    shared = Path(os.path.commonpath([folder, path]))
    if shared == Path(path.anchor) or shared in Path("~").expanduser().parents:
        return None
    return Path(os.path.relpath(path, folder)).as_posix()
