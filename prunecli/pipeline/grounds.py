"""What the trials of a sweep stand on: a digest of it, the compression that budgets ask for, the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from prunecli.budget.limits import find_limits
from prunecli.checkpoint import read_checkpoint
from prunecli.costs import measure_costs
from prunecli.pipeline.limits import constraints_of, limit_of
from prunecli.pipeline.masking import budget_of
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.settings import Choices, SweepChoices
from prunecli.pipeline.trials import digest_of
from prunecli.pipeline.versions import versions
from prunecli.pipeline.weighing import prunes_weights
from prunecli.recipe import Recipe
from prunecli.spec import to_json_dict
from prunecli.spec.code import code_digest
from prunecli.spec.model_spec import change_paths
from prunecli.spec.tables import without_folder
from prunecli.strict_json import Json

_OF_TRIALS = ("method", "granularity", "keep", "target", "ratio", "seeds", "jobs")
"""What differs from trial to trial, is shown elsewhere, or changes nothing but speed."""
_BLOCK = 1 << 20


def digest_of_ground(opened: Opened, choices: Choices, device: str) -> str:
    """Return a digest of the model, its code and data, what runs it, and the versions of all that."""
    spec = opened.spec
    sources = [text for text in (spec.data.sample, spec.data.train, spec.data.test) if text is not None]
    code = {spec.factory, spec.task.loss, *sources}
    teacher = choices.recipe.distill
    conditions: Json = {
        "checkpoint": opened.checkpoint.digest if opened.checkpoint is not None else "new",
        "spec": to_json_dict(spec),
        "code": [code_digest(spec, text) for text in sorted(code) if _names_code(text)],
        "data": [[without_folder(text), *_digests(opened, text)] for text in sources],
        "teacher": read_checkpoint(Path(teacher)).digest if teacher is not None else None,
        "device": device,
        "versions": versions(),
    }
    return digest_of(conditions)


def asked_ratio(opened: Opened, choices: Choices) -> float:
    """Return the compression that a budget asks for: what there is / what may stay of what it counts."""
    if prunes_weights(choices.importance):
        return float(budget_of(choices).ratio)
    limit, structure = limit_of(choices.budget), opened.structure
    limits = find_limits(structure, constraints_of(choices.budget))
    widths = {group.name: group.width for group in structure.groups}
    settled = sum(each.allowed[0] for each in limits.values() if each.settled)
    free = sum(widths[name] for name, each in limits.items() if not each.settled)
    costs = measure_costs(opened.model, *opened.example)
    dense = {"units": sum(widths.values()), "params": costs.params, "macs": costs.macs}[limit.currency.value]
    return max(dense / max(limit.allowed(dense, settled=settled, free=free), 1), 1.0)


def settings_of_sweep(opened: Opened, first: Choices, choices: SweepChoices) -> dict[str, Json]:
    """Return what holds for all trials, in the order to show it; what was left alone is left out."""
    recipe = first.recipe
    groups = (choices.compared, choices.swept, choices.weights, choices.recovery)
    data = opened.spec.data
    sources = {"sample": data.sample, "train": data.train if recipe.epochs else None, "test": data.test}
    seed = choices.machine.seed
    return {
        "start": f"new models, init {first.start.init}" if first.start.at_init else "checkpoint",
        "seeds": list(range(seed, seed + choices.swept.seeds)),
        **{name: value for group in groups for name, value in _changed(group) if name not in _OF_TRIALS},
        "epochs": recipe.epochs,
        **({"lr": recipe.lr, **dict(_changed(recipe))} if recipe.epochs else {}),
        "batch_size": first.samples.batch_size,
        **({"samples": first.samples.samples} if first.samples.samples is not None else {}),
        **{name: without_folder(source) for name, source in sources.items() if source is not None},
    }


def _changed(group: Any) -> Iterator[tuple[str, Json]]:
    """Yield what is not as by default; of files, the names alone."""
    usual = Recipe() if isinstance(group, Recipe) else type(group)()
    for item in fields(usual):
        value = getattr(group, item.name)
        if value != getattr(usual, item.name):
            plain = list(value) if isinstance(value, tuple) else value
            yield item.name, Path(value).name if item.name == "distill" else plain


def _names_code(text: str) -> bool:
    """Say whether a text names a file or a module with code in it.

    >>> [_names_code(text) for text in ("net.py:build", "package.nets:build", "npz:a.npz#test", "mse")]
    [True, True, False, False]
    """
    place, colon, name = text.partition("[")[0].rpartition(":")
    is_data = text.partition(":")[0] in ("npz", "idx", "imagefolder", "torchvision", "random", "timm")
    return bool(colon and place and name) and not is_data


def _digests(opened: Opened, source: str) -> Iterator[Json]:
    """Yield what tells whether the files of a source are the same: digests, or sizes and times of many."""
    paths: list[Path] = []

    def note(path: str) -> str:
        paths.append(opened.spec.resolve(path.partition("#")[0]))
        return path

    change_paths(source.partition("[")[0], note)
    for path in paths:
        if path.is_file():
            yield _digest_of_file(path)
        elif path.is_dir():
            found = [each for each in sorted(path.rglob("*")) if each.is_file()]
            yield digest_of([[each.relative_to(path).as_posix(), *_size_and_time(each)] for each in found])


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
