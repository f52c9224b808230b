"""Recipe + model -> torch's optimizer and learning-rate scheduler, and their state as tensors and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from typing_extensions import assert_never

from prunecli.errors import UsageError
from prunecli.recipe import RateName, Recipe
from prunecli.strict_json import Json

_WARM_UP_FROM = 1e-3
"""The share of the rate that a warm-up starts from."""


@dataclass(frozen=True)
class Optimising:
    """An optimizer, and what changes its rate."""

    optimizer: Optimizer
    rate: LRScheduler

    @property
    def rate_now(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])


def make_optimising(
    model: nn.Module, recipe: Recipe, epochs: int, steps_per_epoch: int, lr_schedule: RateName | None = None
) -> Optimising:
    """Return a fresh optimizer for a stretch of training, and its schedule over that stretch.

    Args:
        model: whose parameters are trained; those that ask for no gradient are left alone.
        recipe: what to use.
        epochs: how long the stretch is.
        steps_per_epoch: how often the optimizer steps in an epoch.
        lr_schedule: instead of the recipe's.
    """
    optimizer = _make_optimizer(_parameter_groups(model, recipe), recipe)
    steps = max(epochs * steps_per_epoch, 1)
    warm = min(ceil(recipe.warmup * steps_per_epoch), steps - 1)
    kind = lr_schedule or recipe.lr_schedule
    rate = _make_rate(optimizer, recipe, kind, steps - warm, steps_per_epoch)
    if warm and kind != "onecycle":
        rising = LinearLR(optimizer, _WARM_UP_FROM, total_iters=warm)
        rate = SequentialLR(optimizer, [rising, rate], milestones=[warm])
    return Optimising(optimizer, rate)


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Part the parameters into those that decay and those that do not: biases, normalisations, vectors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError(
            "All parameters of the model are frozen (`requires_grad` is False): nothing can train."
        )
    if recipe.decay_all:
        return [{"params": trained, "weight_decay": recipe.weight_decay}]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    match recipe.optimizer:
        case "sgd":
            nesterov = recipe.nesterov and recipe.momentum > 0
            return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
        case "adam":
            return Adam(groups, lr=recipe.lr, betas=(recipe.momentum, recipe.second_beta))
        case "adamw":
            return AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, recipe.second_beta))
        case _:
            assert_never(recipe.optimizer)


def _make_rate(
    optimizer: Optimizer, recipe: Recipe, kind: RateName, steps: int, steps_per_epoch: int
) -> LRScheduler:
    match kind:
        case "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps)
        case "step":
            return StepLR(optimizer, step_size=recipe.lr_step * steps_per_epoch, gamma=recipe.lr_gamma)
        case "constant":
            return ConstantLR(optimizer, factor=1.0, total_iters=0)
        case "onecycle":
            return OneCycleLR(optimizer, recipe.lr, total_steps=steps, cycle_momentum=False)
        case _:
            assert_never(kind)


def state_tensors(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (parameter, what, tensor) for everything the optimizer remembers of a parameter."""
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield name, key, value


def plain_state(optimising: Optimising) -> dict[str, Json]:
    """Return the rest of the state, as JSON holds it: rates, counters."""
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimising.optimizer.param_groups
    ]
    return {"groups": _plain(settings), "rate": _plain(optimising.rate.state_dict())}


def load_state(
    optimising: Optimising, model: nn.Module, tensors: Mapping[tuple[str, str], Tensor], plain: Any
) -> None:
    """Set a fresh optimizer and scheduler to a state written down before."""
    for group, settings in zip(optimising.optimizer.param_groups, plain["groups"], strict=True):
        group.update({name: _like(group.get(name), value) for name, value in settings.items()})
    _load_rate(optimising.rate, plain["rate"])
    parameters = dict(model.named_parameters())
    for (name, key), tensor in tensors.items():
        parameter = parameters[name]
        on = parameter.device if tensor.ndim else tensor.device  # step counters live on the CPU
        optimising.optimizer.state[parameter][key] = tensor.to(on).clone()


def move_state(optimizer: Optimizer, before: nn.Module, after: nn.Module, change: Any) -> None:
    """Let the optimizer train `after` instead of `before`; `change(name, tensor)` makes its memory fit."""
    names = {parameter: name for name, parameter in before.named_parameters()}
    new = dict(after.named_parameters())
    for group in optimizer.param_groups:
        moved = []
        for parameter in group["params"]:
            name = names[parameter]
            remembered = optimizer.state.pop(parameter, None)
            if remembered is not None:
                optimizer.state[new[name]] = {
                    key: change(name, value) if isinstance(value, Tensor) and value.ndim else value
                    for key, value in remembered.items()
                }
            moved.append(new[name])
        group["params"] = moved


def _load_rate(rate: LRScheduler, plain: Any) -> None:
    """Set a scheduler to a state written down before; those that it is made of get theirs."""
    known = vars(rate)
    for name, value in plain.items():
        if name == "_schedulers":
            for each, state in zip(known[name], value, strict=True):
                _load_rate(each, state)
        else:
            setattr(rate, name, _like(known.get(name), value))


def _plain(value: Any) -> Any:
    """Return numbers, texts, lists and tables of them; what JSON cannot hold is left out."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items() if _is_plain(item)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, Mapping))


def _like(known: Any, value: Any) -> Any:
    """Return a value read from JSON in the type that the one in its place has."""
    if isinstance(known, tuple):
        return tuple(value)
    if isinstance(known, Tensor):
        return torch.as_tensor(value)
    return value
