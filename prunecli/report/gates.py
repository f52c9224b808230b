"""A report and expressions over its figures -> which checks hold: `macs_ratio>0.55`. Nothing is evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as fields_of
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from prunecli.arguments import nearest
from prunecli.errors import UsageError
from prunecli.report.values import Accuracy, Change, Report

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": ge, "<=": le, "==": eq, "!=": ne, ">": gt, "<": lt,
}  # fmt: skip
_EXPRESSION = re.compile(
    r"\s*(?P<name>[A-Za-z_][\w.-]*)\s*(?P<operator>>=|<=|==|!=|>|<)\s*(?P<number>[-+]?\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?)"
    r"(?P<percent>%?)\s*"
)


@dataclass(frozen=True)
class Gate:
    """One check: it fails if the figure stands so to the limit."""

    text: str
    name: str
    operator: str
    limit: float


@dataclass(frozen=True)
class Verdict:
    """A gate, the figure that it looked at, and whether it holds."""

    gate: Gate
    value: float
    holds: bool

    @property
    def text(self) -> str:
        """The verdict in one line."""
        state = "ok" if self.holds else "FAILED"
        return f"{state}: {self.gate.name} is {self.value:.6g}; fails if {self.gate.text}"


def parse_gate(text: str) -> Gate:
    """Read `FIGURE OPERATOR NUMBER`, such as `macs_ratio > 0.55` or `params_ratio>55%`.

    Raises:
        UsageError: it is not written so.

    >>> parse_gate("macs_ratio>55%")
    Gate(text='macs_ratio>55%', name='macs_ratio', operator='>', limit=0.55)
    """
    found = _EXPRESSION.fullmatch(text)
    if found is None:
        raise UsageError(
            f"`--fail-if {text}`: write FIGURE, one of {' '.join(_OPERATORS)}, and a number, such as "
            "`macs_ratio>0.55`."
        )
    limit = float(found["number"].replace("_", "")) / (100 if found["percent"] else 1)
    return Gate(text.strip(), found["name"], found["operator"], limit)


def check_gates(report: Report, gates: Sequence[Gate]) -> tuple[Verdict, ...]:
    """Look every gate's figure up in the report.

    Raises:
        UsageError: the report has no such figure; the message names the nearest.
    """
    figures = figures_of(report)
    return tuple(_verdict(gate, figures) for gate in gates)


def figures_of(report: Report) -> dict[str, float]:
    """Return every number in a report, by its path in the JSON, and those that people ask for by short names.

    Short are `macs_ratio`, `params_ratio`, `size_ratio` and `units_ratio` (after / before), `top1_drop` and
    `top5_drop` (points of a per cent that were lost), `loss_rise`, and `warnings` (how many there are).
    """
    totals = report.totals
    changes = {
        "macs": totals.macs,
        "params": totals.params,
        "size": totals.parameter_bytes,
        "units": totals.units,
    }
    short = {f"{name}_ratio": change.ratio for name, change in changes.items() if change is not None}
    return {
        **dict(_numbers(report, "")),
        **short,
        **_accuracy(report.accuracy_before, report.accuracy_after),
        "warnings": float(len(report.warnings)),
    }


def _verdict(gate: Gate, figures: Mapping[str, float]) -> Verdict:
    if gate.name not in figures:
        raise UsageError(
            f"`--fail-if {gate.text}`: the report has no figure `{gate.name}`.{nearest(gate.name, figures)} "
            "`--json` shows all there are; their names are paths, such as `totals.macs.after`."
        )
    value = figures[gate.name]
    return Verdict(gate, value, not _OPERATORS[gate.operator](value, gate.limit))


def _accuracy(before: Accuracy | None, after: Accuracy | None) -> dict[str, float]:
    if before is None or after is None:
        return {}
    found = {}
    for name in ("top1", "top5"):
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and new is not None:
            found[f"{name}_drop"] = 100 * (old - new)
    if before.loss is not None and after.loss is not None:
        found["loss_rise"] = after.loss - before.loss
    return found


def _numbers(value: Any, path: str) -> list[tuple[str, float]]:
    """Return the numbers in a value, with where they stand; layers and such by their names."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, (int, float)):
        return [(path, float(value))]
    if is_dataclass(value):
        own = [(item.name, getattr(value, item.name)) for item in fields_of(value)]
        own += [("ratio", value.ratio)] if isinstance(value, Change) else []
        return [found for name, each in own for found in _numbers(each, _joined(path, name))]
    if isinstance(value, Mapping):
        return [found for name, each in value.items() for found in _numbers(each, _joined(path, str(name)))]
    named = [(getattr(each, "name", None) or str(i), each) for i, each in enumerate(value)]
    return [found for name, each in named for found in _numbers(each, _joined(path, name))]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
