"""Settings that go together, by name. What the user sets stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from prunecli.arguments import nearest
from prunecli.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Preset = Mapping[str, Mapping[str, Any]]
"""Name of a group of settings -> values for those that the user left alone."""

_RANKED: Preset = {  # METHODS 7.2
    "budget": {"scope": "layer"},
    "directed": {
        "schedule": "contribution",
        "schedule_arg": ("warm=30", "every=15", "percent=10"),
    },
    "recipe": {
        "epochs": 100,
        "lr": 0.1,
        "lr_schedule": "constant",
        "momentum": 0.0,
        "weight_decay": 0.0,
    },
}

PRESETS: Mapping[str, Preset] = {
    "best": {
        "importance": {"method": ("fisher",)},
        "budget": {"rank": "score-per-cost"},
        "recovery": {"reconstruct": True},
    },
    "rank": {"importance": {"method": ("contribution",)}, "samples": {"batch_size": 5000}, **_RANKED},
    "rank-code": {
        "importance": {
            "method": ("contribution",),
            "method_arg": ("average=1", "maximum=0", "activation=pre", "window=last-batch"),
        },
        **_RANKED,
    },
    "taylor-cifar": {
        "steps": {"step_units": "2%", "prune_every": 10},
        "samples": {"batch_size": 64},
        "budget": {"rank": "score"},
        "recipe": {"lr": 0.01},
    },
    "taylor-imagenet": {
        "steps": {"step_units": "100", "prune_every": 30},
        "samples": {"batch_size": 256},
        "budget": {"rank": "score"},
        "recipe": {"epochs": 25, "lr": 0.01, "lr_schedule": "step", "lr_step": 10, "weight_decay": 0.0},
    },
    "taylor-single": {
        "steps": {"steps": 1, "prune_every": 3000},
        "samples": {"batch_size": 256},
        "budget": {"rank": "score"},
        "recipe": {"epochs": 25, "lr": 0.01, "lr_schedule": "step", "lr_step": 10, "weight_decay": 0.0},
    },
    "taylor-lenet": {
        "steps": {"step_units": "1", "prune_every": 50, "tune": False},
        "samples": {"batch_size": 100},
        "budget": {"rank": "score"},
    },
    "taylor-resnet18": {
        "steps": {"step_units": "100", "prune_every": 20, "tune": False},
        "samples": {"batch_size": 64},
        "budget": {"rank": "score"},
    },
}

_DEPENDS_ON: Mapping[str, str] = {
    "method_arg": "method",
    "reconstruct": "recalibrate_bn",
    "step_units": "steps",
    "schedule_arg": "schedule",
}
"""A preset says nothing of the first where the user set the second to something else than the preset does."""

_Settings = TypeVar("_Settings", bound="DataclassInstance")


def with_preset(groups: _Settings, name: str | None, given: frozenset[str] = frozenset()) -> _Settings:
    """Return the groups of settings with a preset filled in where the user set nothing.

    Of values written NAME=VALUE, those of the user replace those of the same name.

    Args:
        groups: a dataclass with a field for each group; what it has no field for is left out.
        name: which preset, if any.
        given: the settings that the user gave, even if as by default; those not as by default count anyway.

    Raises:
        UsageError: there is no such preset.
    """
    return with_settings(groups, find_preset(name), given)


def with_settings(groups: _Settings, values: Preset, given: frozenset[str] = frozenset()) -> _Settings:
    """Return the groups of settings with values filled in where the user set nothing."""
    return replace(
        groups,
        **{
            item.name: fill(getattr(groups, item.name), values[item.name], given)
            for item in fields(groups)
            if item.name in values
        },
    )


def find_preset(name: str | None) -> Preset:
    """Return the preset of that name; an empty one for none.

    Raises:
        UsageError: there is no such preset.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        known = ", ".join(f"`{each}`" for each in PRESETS)
        raise UsageError(f"There is no preset `{name}`.{nearest(name, PRESETS)} There are {known}.")
    return PRESETS[name]


def fill(settings: _Settings, values: Mapping[str, Any], given: frozenset[str] = frozenset()) -> _Settings:
    """Return one group of settings with the values of a preset where the user set nothing."""
    own = {
        item.name: getattr(settings, item.name)
        for item in fields(settings)
        if item.name in given or getattr(settings, item.name) != _default(item)
    }
    filled = {}
    for name, value in values.items():
        ground = _DEPENDS_ON.get(name)
        if ground in own and own[ground] != values.get(ground):
            continue
        if name not in own:
            filled[name] = value
        elif _is_named(value):
            filled[name] = _merged(value, own[name])
    return replace(settings, **filled)


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and all("=" in str(each) for each in value)


def _merged(values: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """Replace what is written NAME=VALUE by the user's of the same name.

    >>> _merged(("window=last-batch", "average=1"), ("window=all",))
    ('average=1', 'window=all')
    """
    names = {_name_of(each) for each in own}
    return (*(each for each in values if _name_of(each) not in names), *own)


def _name_of(text: str) -> str:
    return text.partition("=")[0].strip().replace("-", "_")
