"""`prunecli inspect`: what a checkpoint is made of."""

from __future__ import annotations

import json
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


@with_options
def command(checkpoint: CheckpointPath, source: Source, shown: Shown) -> None:
    """Show layers, groups of units that go together, costs, and what is frozen and why."""
    from prunecli.cli.progress import reporting
    from prunecli.pipeline.inspect import inspect

    with reporting(shown) as reporter:
        found = inspect(checkpoint, source, Samples(), reporter)
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
            return to_terminal(tables, heading(found), closing(found))


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
    )
    groups = Table(
        "Groups: units that go together",
        ("group", "units", "params/unit", "MACs/unit", "cut in"),
        tuple(
            (item.name, item.width, item.params_per_unit, item.macs_per_unit, _listed(item.layers))
            for item in found.groups
        ),
        lists=("cut in",),
    )
    return layers, groups


def heading(found: Inspection) -> str:
    """Return what the checkpoint is, in one line."""
    return f"{found.checkpoint}: {found.factory}, input {' and '.join(found.inputs)}, {found.read_as}"


def closing(found: Inspection) -> list[str]:
    """Return what is frozen and why, and the totals."""
    lines = [f"frozen: {item.name} ({item.width} units) {_why(item)}" for item in found.frozen]
    share = found.prunable_params / found.params if found.params else 0.0
    lines.append(
        f"{found.params:,} params, {found.macs:,} MACs, {found.units:,} units in {len(found.groups)} "
        f"group{'s' * (len(found.groups) != 1)}; {share:.1%} of the params can be cut"
    )
    if found.not_counted:
        lines.append(f"MACs not counted: {', '.join(found.not_counted)}")
    return [*lines, *found.notes]


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def _why(item: Frozen) -> str:
    place = " at ".join(part for part in (item.op, item.module) if part)
    return f"{item.reason} ({place})" if place else item.reason
