"""What a checkpoint file holds -> the one dict of tensors in it that is a model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunecli.checkpoint.names import listed, printable
from prunecli.checkpoint.stand_ins import Array
from prunecli.errors import CheckpointError

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "net_state_dict",
    "network",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "model_state_dict_ema",
    "params_ema",
    "params-ema",
)
"""Keys under which training scripts put the model. Any other key is taken if it is the only one."""

_TRAINING_STATE = (
    "optim",
    "sched",
    "lr_",
    "scaler",
    "grad_scaler",
    "amp",
    "rng",
    "loss",
    "criterion",
    "callback",
    "loops",
    "hyper",
    "hparams",
    "meta",
    "_metadata",
    "args",
    "config",
)
"""How keys begin that may hold tensors, but not those of a model."""
_DEEPEST = 4
"""How many dicts may stand around those of a model."""


def find_state_dict(path: Path, content: Any, key: str | None = None) -> tuple[dict[str, Tensor], str | None]:
    """Return the parameters and buffers, and under which key they were (None: at the top).

    Args:
        path: the file, for messages.
        content: what it holds.
        key: which entry to take, with dots between nested keys; found by itself if there is one candidate.

    Raises:
        CheckpointError: there are no parameters, or several candidates.
    """
    if key is not None:
        return _tensors_of(path, _entry(path, content, key)), key
    if isinstance(content, nn.Module):
        return _tensors_of(path, content), None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"`{path}` holds {_kind(content)}, not a dict of tensors.")
    candidates = _candidates(content)
    if _is_state_dict(content, candidates):
        return _tensors_of(path, content), None
    if len(candidates) > 1:
        example = printable(next(iter(candidates)))
        raise CheckpointError(
            f"`{path}` holds several models: {listed(candidates, 12)}. Choose one, e.g. `--key {example}`."
        )
    if not content:
        raise CheckpointError(f"`{path}` holds no parameters: it is an empty dict.")
    if not candidates:
        raise CheckpointError(
            f"`{path}` holds no parameters: its keys are {listed(content, 8)}. If they are further inside, "
            "say where with `--key NAME.NAME`."
        )
    name, found = next(iter(candidates.items()))
    return _tensors_of(path, found), name


def _is_state_dict(content: Mapping[Any, Any], candidates: Mapping[str, Any]) -> bool:
    """Say whether the tensors directly inside are the model's, and not numbers beside a wrapped model."""
    tensors = _tensors(content)
    return bool(tensors) and (not candidates or any("." in name for name in tensors))


def _candidates(content: Mapping[Any, Any], depth: int = _DEEPEST) -> dict[str, Any]:
    """Return the entries that may be a model's, known names first; two names of one thing count once."""
    known = [name for name in WRAPPERS if name in content and _holds_tensors(content[name])]
    others = [
        name
        for name, value in content.items()
        if name not in WRAPPERS
        and isinstance(name, str)
        and not name.lower().startswith(_TRAINING_STATE)
        and _holds_tensors(value)
    ]
    found: dict[str, Any] = {}
    for name in known or others:
        inner = content[name]
        if isinstance(inner, Mapping) and not _tensors(inner):
            nested = _candidates(inner, depth - 1) if depth > 0 else {}
            found |= {f"{name}.{key}": value for key, value in nested.items()}
        elif not any(_same_tensors(inner, other) for other in found.values()):
            found[name] = inner
    return found


def _holds_tensors(value: Any) -> bool:
    """Say whether this is a model's state, or a dict that has one inside. Each dict is looked at once."""
    level, seen = [value], {id(value)}
    for _ in range(_DEEPEST + 1):
        if any(
            isinstance(each, nn.Module) or (isinstance(each, Mapping) and _tensors(each)) for each in level
        ):
            return True
        below = [
            inner
            for each in level
            if isinstance(each, Mapping)
            for name, inner in each.items()
            if isinstance(inner, (Mapping, nn.Module)) and not _is_training_state(name)
        ]
        level = list({id(inner): inner for inner in below if id(inner) not in seen}.values())
        seen |= {id(inner) for inner in level}
    return False


def _is_training_state(name: object) -> bool:
    return isinstance(name, str) and name.lower().startswith(_TRAINING_STATE)


def _tensors(value: nn.Module | Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors directly inside, by name, if all names are texts."""
    entries = value.state_dict() if isinstance(value, nn.Module) else value
    tensors = {}
    for name, entry in entries.items():
        tensor = entry.tensor if isinstance(entry, Array) else entry
        if isinstance(tensor, Tensor):
            if not isinstance(name, str):
                return {}
            tensors[name] = tensor.detach()
    return tensors


def _tensors_of(path: Path, value: Any) -> dict[str, Tensor]:
    tensors = _tensors(value) if isinstance(value, (nn.Module, Mapping)) else {}
    if not tensors:
        inside = f" Its keys are {listed(value, 8)}." if isinstance(value, Mapping) else ""
        raise CheckpointError(f"`{path}`: the entry chosen is {_kind(value)}, not a dict of tensors.{inside}")
    return tensors


def _same_tensors(a: Any, b: Any) -> bool:
    """Say whether two entries are the same tensors twice."""
    return a is b or (
        isinstance(a, Mapping)
        and isinstance(b, Mapping)
        and a.keys() == b.keys()
        and all(a[name] is b[name] for name in a)
    )


def _entry(path: Path, content: Any, key: str) -> Any:
    """Follow `a.b.c` into nested dicts; names that hold dots themselves are matched whole first."""
    if isinstance(content, Mapping) and key in content:
        return content[key]
    if isinstance(content, Mapping):
        for name in content:
            if isinstance(name, str) and key.startswith(f"{name}."):
                return _entry(path, content[name], key[len(name) + 1 :])
        inside = {
            name[len(key) + 1 :]: value for name, value in content.items() if str(name).startswith(f"{key}.")
        }
        if inside:  # `--key state_dict.model` takes "model.conv.weight" of the state dict as "conv.weight"
            return inside
    keys = (
        f"its keys are {listed(content, 12)}" if isinstance(content, Mapping) else f"it is {_kind(content)}"
    )
    raise CheckpointError(f"`{path}` has no entry `{printable(key)}`: {keys}.")


def _kind(value: Any) -> str:
    return f"a {printable(type(value).__name__)}"
