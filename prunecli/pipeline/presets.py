"""Settings that go together, by name. What the user sets stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from prunecli.errors import UsageError
from prunecli.importance.registry import nearest
from prunecli.pipeline.settings import Budget, Choices, Importance, Recovery


@dataclass(frozen=True)
class Preset:
    """Values for settings that the user left alone."""

    importance: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    "best": Preset(
        importance={"method": ("fisher",)}, budget={"rank": "score-per-cost"}, recovery={"reconstruct": True}
    ),
    "rank-code": Preset(
        importance={
            "method": ("contribution",),
            "method_arg": ("average=1", "maximum=0", "activation=pre", "window=last-batch"),
        },
        budget={"scope": "layer"},
    ),
}

_Settings = TypeVar("_Settings", Importance, Budget, Recovery)


def with_preset(choices: Choices) -> Choices:
    """Return the choices with the preset filled in where they are at their defaults.

    Raises:
        UsageError: there is no such preset.
    """
    preset = _find(choices.importance.preset)
    return replace(
        choices,
        importance=_filled(choices.importance, Importance(), preset.importance),
        budget=_filled(choices.budget, Budget(), preset.budget),
        recovery=_filled(choices.recovery, Recovery(), preset.recovery),
    )


def importance_with_preset(importance: Importance) -> Importance:
    """Return the settings of importance with the preset filled in where they are at their defaults.

    Raises:
        UsageError: there is no such preset.
    """
    return _filled(importance, Importance(), _find(importance.preset).importance)


def _find(name: str | None) -> Preset:
    if name is None:
        return Preset()
    if name not in PRESETS:
        known = ", ".join(f"`{each}`" for each in PRESETS)
        raise UsageError(f"There is no preset `{name}`.{nearest(name, PRESETS)} There are {known}.")
    return PRESETS[name]


def _filled(given: _Settings, default: _Settings, values: Mapping[str, Any]) -> _Settings:
    """Return the settings with `values` where they are as by default."""
    return replace(
        given,
        **{name: value for name, value in values.items() if getattr(given, name) == getattr(default, name)},
    )
