"""A report and expressions over its figures -> which checks hold: `macs_ratio>0.55`.

One regular expression is the whole grammar; nothing is evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as fields_of
from operator import add, eq, ge, gt, le, lt, mul, ne, sub
from typing import Any

from prunecli.arguments import nearest
from prunecli.errors import UsageError
from prunecli.report.values import Accuracy, Change, Report

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": ge, "<=": le, "==": eq, "!=": ne, ">": gt, "<": lt,
}  # fmt: skip
_STEPS: Mapping[str, Callable[[float, float], float]] = {"*": mul, "+": add, "-": sub}
SHORT = (
    "macs_ratio", "params_ratio", "size_ratio", "file_ratio", "units_ratio", "peak_activation_ratio",
    "latency_ratio", "onnxruntime_ratio", "top1_drop", "top5_drop", "loss_rise", "warnings",
)  # fmt: skip
"""Figures that need no path."""
POINTS = ("top1_drop", "top5_drop")
"""Figures in points of a per cent: of these, `1%` is 1, and not 0.01."""
_NUMBER = r"[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_EXPRESSION = re.compile(
    r"\s*(?P<name>[A-Za-z_][^<>=!]*?)\s*(?P<operator>>=|<=|==|!=|>|<)\s*"
    rf"(?:(?P<number>{_NUMBER})\s*(?P<percent>%?)"
    rf"|baseline\s*(?:(?P<step>[*+-])\s*(?P<by>{_NUMBER.removeprefix('[-+]?')})\s*(?P<share>%?))?)\s*"
)


@dataclass(frozen=True)
class Gate:
    """One check: it fails if the figure stands so to the limit."""

    text: str
    name: str
    operator: str
    number: float
    """The limit; or what the figure of the baseline is multiplied with, or raised or lowered by."""
    step: str | None = None
    """`*`, `+` or `-` of a limit that the baseline gives; None of a plain one."""

    def limit(self, baseline: float | None) -> float:
        """Return what the figure is compared with."""
        if self.step is None or baseline is None:
            return self.number
        return _STEPS[self.step](baseline, self.number)


@dataclass(frozen=True)
class Verdict:
    """A gate, the figure that it looked at, and whether it holds."""

    gate: Gate
    value: float
    baseline: float | None
    """The same figure of the earlier run, where the gate asks for it."""
    holds: bool

    @property
    def text(self) -> str:
        """The verdict in one line."""
        state = "ok" if self.holds else "FAILED"
        was = "" if self.baseline is None else f" (baseline {self.baseline:.6g})"
        worth = "" if self.baseline is None else f", that is {self.gate.limit(self.baseline):.6g}"
        return f"{state}: {self.gate.name} is {self.value:.6g}{was}; fails if {self.gate.text}{worth}"


def parse_gate(text: str) -> Gate:
    """Read FIGURE OPERATOR LIMIT; the limit is a number or a per cent, or follows an earlier run.

    LIMIT is `0.55`, `55%`, `baseline`, `baseline*1.05`, `baseline+0.5` or `baseline-0.5`.

    Raises:
        UsageError: it is not written so.

    >>> parse_gate("macs_ratio>55%")
    Gate(text='macs_ratio>55%', name='macs_ratio', operator='>', number=0.55, step=None)
    >>> parse_gate("top1_drop > baseline + 0.5").step
    '+'
    """
    found = _EXPRESSION.fullmatch(text)
    if found is None:
        raise UsageError(
            f"`--fail-if {text}`: write FIGURE, one of {' '.join(_OPERATORS)}, and a number, such as "
            "`macs_ratio>0.55`, or a limit that follows `--baseline`, such as `macs_ratio>baseline*1.05`."
        )
    if "." not in found["name"] and found["name"] not in SHORT:
        raise UsageError(
            f"`--fail-if {text}`: there is no figure `{found['name']}`.{nearest(found['name'], SHORT)} "
            f"Known are {', '.join(SHORT)}, and paths into the JSON, such as `totals.macs.after`."
        )
    step = found["step"] or (None if found["number"] is not None else "*")
    in_points = found["name"] in POINTS and step != "*"
    number = found["number"] or found["by"] or "1"
    is_percent = bool(found["percent"] or found["share"]) and not in_points
    limit = float(number.replace("_", "")) / (100 if is_percent else 1)
    return Gate(text.strip(), found["name"], found["operator"], limit, step)


def check_gates(report: Report, gates: Sequence[Gate], baseline: Report | None = None) -> tuple[Verdict, ...]:
    """Look every gate's figure up in the report, and in the baseline where the limit follows it.

    Raises:
        UsageError: the report or the baseline has no such figure; the message names the nearest. Or a limit
            follows a baseline, and there is none.
    """
    figures = figures_of(report)
    earlier = figures_of(baseline) if baseline is not None else None
    return tuple(_verdict(gate, figures, earlier) for gate in gates)


def needs_baseline(gate: Gate) -> UsageError:
    """Return the error of a limit that follows a baseline where there is none."""
    return UsageError(f"`--fail-if {gate.text}` follows a baseline: name a report with `--baseline`.")


def changes_since(report: Report, baseline: Report) -> list[str]:
    """Return what the figures of short names were in an earlier run, and are now: a line for each."""
    now, then = _short(report), _short(baseline)
    return [
        f"{name}: {then[name]:.6g} -> {value:.6g}" + ("" if value != then[name] else " (same)")
        for name, value in now.items()
        if name in then
    ]


def figures_of(report: Report) -> dict[str, float]:
    """Return every number in a report, by its path in the JSON, and those that people ask for by short names.

    What stands in a list goes by its name, as in `layers.conv1.macs.after`, and by its place, as in
    `layers[0].macs.after`: names may be shared, or hold what an expression cannot.

    Short are `macs_ratio`, `params_ratio`, `size_ratio` (parameters), `file_ratio`, `units_ratio`,
    `peak_activation_ratio`, `latency_ratio` and `onnxruntime_ratio` (all after / before), `top1_drop` and
    `top5_drop` (points of a per cent that were lost), `loss_rise`, and `warnings` (how many there are).
    """
    return {**dict(_numbers(report, "")), **_short(report)}


def _short(report: Report) -> dict[str, float]:
    totals = report.totals
    changes = {
        "macs": totals.macs,
        "params": totals.params,
        "size": totals.parameter_bytes,
        "file": totals.file_bytes,
        "units": totals.units,
        "peak_activation": totals.peak_activation_bytes,
    }
    found = {f"{name}_ratio": change.ratio for name, change in changes.items() if change is not None}
    if report.models:
        ratios = {
            "latency_ratio": report.time_left("pytorch"),
            "onnxruntime_ratio": report.time_left("onnxruntime"),
        }
        found |= {name: ratio for name, ratio in ratios.items() if ratio is not None}
    return {
        **found,
        **_accuracy(report.accuracy_before, report.accuracy_after),
        "warnings": float(len(report.warnings)),
    }


def _verdict(gate: Gate, figures: Mapping[str, float], earlier: Mapping[str, float] | None) -> Verdict:
    value = _look_up(gate, figures, "the report")
    if gate.step is None:
        baseline = None
    elif earlier is None:
        raise needs_baseline(gate)
    else:
        baseline = _look_up(gate, earlier, "the baseline")
    return Verdict(gate, value, baseline, not _OPERATORS[gate.operator](value, gate.limit(baseline)))


def _look_up(gate: Gate, figures: Mapping[str, float], whose: str) -> float:
    if gate.name not in figures:
        raise UsageError(
            f"`--fail-if {gate.text}`: {whose} has no figure `{gate.name}`.{nearest(gate.name, figures)} "
            "`--json` shows all there are; their names are paths, such as `totals.macs.after`."
        )
    return figures[gate.name]


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
    places = [(f"{path}[{i}]", each) for i, each in enumerate(value)]
    named = [(_joined(path, getattr(each, "name", None) or str(i)), each) for i, each in enumerate(value)]
    return [found for where, each in (*places, *named) for found in _numbers(each, where)]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
