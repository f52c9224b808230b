"""`prunecli inspect`: what a checkpoint is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunecli.cli.options import CheckpointPath, Shown, with_options
from prunecli.cli.streams import write_result
from prunecli.pipeline.settings import Samples, Source

if TYPE_CHECKING:
    from prunecli.cli.tables import Table
    from prunecli.pipeline.inspect import Frozen, Inspection

NAME = "inspect"
EXAMPLES = """Examples:
  prunecli inspect model.pt --spec torchvision:resnet18
  prunecli inspect model.pt --json | jq '.groups[].width'"""
MANY = 4
FEW = 3
"""How many layers of a list are named."""


@with_options
def command(checkpoint: CheckpointPath, source: Source, shown: Shown) -> None:
    """Show layers, groups of units that go together, costs, and what is frozen and why.

    Where nothing says how to build the model: what the file holds, and which architecture has such tensors.
    """
    from prunecli.cli.contents import render_contents
    from prunecli.cli.progress import reporting
    from prunecli.pipeline.contents import Contents, inspect_file

    with reporting(shown) as reporter:
        found = inspect_file(checkpoint, source, Samples(), reporter)
    if isinstance(found, Contents):
        write_result(render_contents(found, shown, checkpoint))
    else:
        write_result(render(found, shown))


def render(found: Inspection, shown: Shown) -> str:
    """Return the result in the form asked for."""
    from prunecli.cli.tables import to_csv, to_markdown, to_terminal
    from prunecli.strict_json import to_plain

    layers, groups = tables = tables_of(found)
    match shown.style:
        case "json":
            return json.dumps({"version": 1, **to_plain(found)}, indent=2)
        case "csv":
            return to_csv(layers)
        case "md":
            return to_markdown(tables, f"## {found.checkpoint}", closing(found))
        case "table":
            return to_terminal(tables, heading(found), closing(found), shown.all)


def tables_of(found: Inspection) -> tuple[Table, Table]:
    """Return the layers, and the groups."""
    from prunecli.cli.tables import Table

    layers = Table(
        "Layers",
        ("layer", "type", "units", "params", "MACs", "group"),
        tuple(
            (item.name, item.kind, item.units, item.params, item.macs, item.group) for item in found.layers
        ),
        optional=("type",),
        chosen_by="MACs",
    )
    groups = Table(
        "Groups: units that go together",
        ("group", "units", "params/unit", "MACs/unit", "cut in"),
        tuple(
            (item.name, item.width, item.params_per_unit, item.macs_per_unit, _listed(item.layers))
            for item in found.groups
        ),
        lists=("cut in",),
        chosen_by="MACs/unit",
    )
    return layers, groups


def heading(found: Inspection) -> str:
    """Return what the checkpoint is, in one line."""
    return f"{found.checkpoint}: {found.factory}, input {' and '.join(found.inputs)}, {found.read_as}"


def closing(found: Inspection) -> list[str]:
    """Return what is frozen and why, and the totals."""
    by_reason: dict[str, list[Frozen]] = {}
    for item in found.frozen:
        by_reason.setdefault(item.reason, []).append(item)
    lines = [f"frozen: {_whom(alike)} {_why(alike)}" for alike in by_reason.values()]
    share = found.prunable_params / found.params if found.params else 0.0
    lines.append(
        f"{found.params:,} params, {found.macs:,} MACs, {found.units:,} units in {len(found.groups)} "
        f"group{'s' * (len(found.groups) != 1)}; {share:.1%} of the params can be cut"
    )
    if found.not_counted:
        lines.append(f"MACs not counted: {', '.join(found.not_counted)}")
    return [*lines, *found.notes]


def _listed(names: Sequence[str], shown: int = MANY) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _whom(alike: Sequence[Frozen]) -> str:
    """Name the layers that are frozen for one reason."""
    units = sum(item.width for item in alike)
    if len(alike) == 1:
        return f"{alike[0].name} ({units} units)"
    return f"each of {_listed([item.name for item in alike], FEW)} ({units} units together)"


def _why(alike: Sequence[Frozen]) -> str:
    """Return the reason, and what is the same everywhere of the place where it arose."""
    places = [{item.op for item in alike}, {item.module for item in alike}]
    place = " at ".join(part for (part, *others) in places if part and not others)
    return f"{alike[0].reason} ({place})" if place else alike[0].reason
