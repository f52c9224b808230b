"""`prunecli doctor`: what prunecli stands on, on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prunecli.cli.options import Style, with_options
from prunecli.cli.streams import write_result
from prunecli.errors import GateError

if TYPE_CHECKING:
    from prunecli.pipeline.doctor import Health

NAME = "doctor"
EXAMPLES = """Examples:
  prunecli doctor
  prunecli doctor --json"""


@with_options
def command(style: Style) -> None:
    """Show versions, devices and optional parts, and what of it does not work."""
    from prunecli.pipeline.doctor import examine

    health = examine()
    write_result(render(health, style))
    if not health.is_well:
        raise GateError("A package that prunecli needs is of no use here; the table says which, and why.")


def render(health: Health, style: Style) -> str:
    """Return what was found in the form asked for."""
    from prunecli.cli.tables import Table, to_csv, to_markdown, to_terminal
    from prunecli.strict_json import to_plain

    own = (("prunecli", health.prunecli, "ok"), ("python", health.python, health.system))
    parts = tuple((part.name, part.version, part.problem or "ok") for part in health.parts)
    packages = Table("Packages", ("package", "version", "state"), (*own, *parts))
    devices = Table(
        "Devices", ("device", "what it is"), tuple((d.name, d.description) for d in health.devices)
    )
    auto = f"`--device auto` is {health.chosen}." if health.chosen else "PyTorch does not work here."
    match style.style:
        case "json":
            return json.dumps({"version": 1, "is_well": health.is_well, **to_plain(health)}, indent=2)
        case "csv":
            return to_csv(packages)
        case "md":
            return to_markdown([packages, devices], "## doctor", [auto])
        case "table":
            return to_terminal([packages, devices], closing=[auto])
