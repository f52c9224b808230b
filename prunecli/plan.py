"""A plan: which units of each group stay, how that was decided; to JSON and back. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from prunecli.errors import InputError
from prunecli.graph.structure import Structure
from prunecli.strict_json import FieldError, Json, JsonError, from_plain, parse_json, to_plain

FORMAT = "prunecli.plan"
VERSION = 1


class Scope(str, Enum):
    """Among which units the lowest scores are looked for."""

    GLOBAL = "global"  # among all
    LAYER = "layer"  # in each group by itself: all groups lose the same share


class Rank(str, Enum):
    """What units are ordered by."""

    SCORE = "score"
    SCORE_PER_COST = "score-per-cost"  # the score over what removing the unit frees


@dataclass(frozen=True)
class Constraints:
    """What a plan must respect beside its budget. Amounts: an int is units, a float a share of the group."""

    min_keep: int | float = 1
    """How much of each group stays at least."""
    round_to: int = 1
    """Kept widths are multiples of this; a group that is narrower stays whole."""
    ignore: tuple[str, ...] = ()
    """Patterns of layers whose units all stay."""
    keep_layer: Mapping[str, int | float] = field(default_factory=dict)
    """Pattern of layers -> how much of each stays, whatever the budget."""


@dataclass(frozen=True)
class Plan:
    """The decision that surgery carries out, and how it came about."""

    keep: Mapping[str, tuple[int, ...]]
    """Group name -> kept units, ascending."""
    widths: Mapping[str, int]
    """Group name -> how many units the dense group has."""
    method: str
    scope: Scope = Scope.GLOBAL
    rank: Rank = Rank.SCORE
    budget: str = ""
    constraints: Constraints = Constraints()
    seed: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    """What the plan was made from -> its sha256."""

    def kept(self) -> dict[str, NDArray[np.bool_]]:
        """Return a bool per unit of each group, True = keep.

        >>> Plan({"conv1": (0, 2)}, {"conv1": 3}, "magnitude").kept()
        {'conv1': array([ True, False,  True])}
        """
        masks = {name: np.zeros(width, dtype=bool) for name, width in self.widths.items()}
        for name, units in self.keep.items():
            masks[name][list(units)] = True
        return masks

    @property
    def unit_count(self) -> int:
        """How many units the dense groups have together."""
        return sum(self.widths.values())

    @property
    def kept_count(self) -> int:
        """How many units stay."""
        return sum(len(units) for units in self.keep.values())

    def check(self, structure: Structure) -> None:
        """Make sure that the plan is one for this network.

        Raises:
            InputError: Naming the first group that differs.
        """
        found = {group.name: group.width for group in structure.groups}
        for name, width in self.widths.items():
            if name not in found:
                raise InputError(f"The plan cuts `{name}`, and the model has no such group. {_OTHER_NETWORK}")
            if width != found[name]:
                raise InputError(
                    f"The plan is for {width} units in `{name}`, not {found[name]}. {_OTHER_NETWORK}"
                )
        for name, width in found.items():
            if name not in self.widths:
                raise InputError(f"The plan says nothing of `{name}` ({width} units). {_OTHER_NETWORK}")

    def to_json(self) -> str:
        """Return the plan as text: one line per group, so that it can be read, compared and edited."""
        head: dict[str, Json] = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "scope": self.scope.value,
            "rank": self.rank.value,
            "budget": self.budget,
            "constraints": to_plain(self.constraints),
            "seed": self.seed,
            "digests": dict(self.digests),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        groups = [
            f"    {json.dumps(name)}: {json.dumps({'width': width, 'keep': list(self.keep[name])})}"
            for name, width in self.widths.items()
        ]
        inside = ",\n".join(groups)
        return "\n".join(["{", *lines, '  "groups": {', *([inside] if inside else []), "  }", "}", ""])

    @staticmethod
    def from_json(text: str, source: str = "plan.json") -> Plan:
        """Read what `to_json` wrote, or a person edited.

        Args:
            text: The whole file.
            source: What to call it in a message.

        Raises:
            InputError: Naming the field that is not as it should be.
        """
        try:
            data = parse_json(text)
            _check_version(data)
            read = from_plain(_File, data)
            for name, group in read.groups.items():
                group.check(f"groups.{name}")
            return Plan(
                keep={name: group.keep for name, group in read.groups.items()},
                widths={name: group.width for name, group in read.groups.items()},
                method=read.method,
                scope=_choice(Scope, read.scope, "scope"),
                rank=_choice(Rank, read.rank, "rank"),
                budget=read.budget,
                constraints=read.constraints,
                seed=read.seed,
                digests=read.digests,
            )
        except JsonError as error:
            raise InputError(f"`{source}` is no JSON: {error}.") from None
        except FieldError as error:
            raise InputError(f"`{source}`: {error}. `prunecli prune --plan` writes such a file.") from None


_OTHER_NETWORK = (
    "It was made for another network, or another input; make it again with `prunecli prune --plan`."
)


_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True)
class _GroupInFile:
    width: int
    keep: tuple[int, ...]

    def check(self, where: str) -> None:
        if self.width < 1:
            raise FieldError(f"`{where}.width`: found {self.width}, expected at least 1")
        if not self.keep:
            raise FieldError(f"`{where}.keep`: it is empty, and a layer keeps at least one unit")
        for before, unit in zip((-1, *self.keep), self.keep, strict=False):
            if not 0 <= unit < self.width:
                raise FieldError(f"`{where}.keep`: found unit {unit}, expected 0 to {self.width - 1}")
            if unit <= before:
                raise FieldError(f"`{where}.keep`: {unit} follows {before}, expected ascending, each once")


@dataclass(frozen=True)
class _File:
    format: str
    version: int
    groups: Mapping[str, _GroupInFile]
    method: str
    scope: str = Scope.GLOBAL.value
    rank: str = Rank.SCORE.value
    budget: str = ""
    constraints: Constraints = Constraints()
    seed: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)


def _check_version(data: Json) -> None:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise FieldError(f'this is no plan: `format` is not "{FORMAT}"')
    if data.get("version") != VERSION:
        raise FieldError(f"`version`: found {data.get('version')}, this prunecli reads {VERSION}")


def _choice(choices: type[_Choice], value: str, where: str) -> _Choice:
    names = [str(choice.value) for choice in choices]
    if value not in names:
        raise FieldError(f"`{where}`: found {value!r}, expected {' or '.join(names)}")
    return choices(value)
