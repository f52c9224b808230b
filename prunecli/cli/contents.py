"""What a checkpoint without a spec holds -> text: tensors or modules, totals, and what to do next."""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prunecli.checkpoint.names import printable
from prunecli.cli.render import most_rows
from prunecli.cli.tables import Table, to_csv, to_markdown, to_terminal
from prunecli.report.numbers import human, human_bytes
from prunecli.strict_json import to_plain

if TYPE_CHECKING:
    from prunecli.architectures import Match
    from prunecli.cli.options import Shown
    from prunecli.pipeline.contents import Contents, TensorFacts

_NAMED = 8
"""How many names a list has at most."""
_LONGEST_VALUE = 60
"""Characters of a text in the metadata that are shown."""


def render_contents(found: Contents, shown: Shown, path: str) -> str:
    """Return the contents in the form asked for.

    Args:
        found: What the file holds.
        shown: The form.
        path: What the user called the file, for the commands that come next.
    """
    match shown.style:
        case "json":
            return json.dumps({"version": 1, "factory": None, **to_plain(found)}, indent=2)
        case "csv":
            return to_csv(_tensors(found))
        case "md":
            return to_markdown([_tensors(found)], f"## {found.checkpoint}", list(_closing(found, path)))
        case "table":
            most = most_rows(shown.all)
            is_long = most is not None and len(found.tensors) > most
            table = _modules(found, most or 0) if is_long else _tensors(found)
            if not any(each.not_finite for each in found.tensors):
                table = _without_last_column(table)
            return to_terminal([table], _heading(found), list(_closing(found, path)), shown.all)


def _tensors(found: Contents) -> Table:
    return Table(
        "Tensors",
        ("tensor", "shape", "dtype", "bytes", "not finite"),
        tuple(
            (
                printable(each.name, None),
                "x".join(map(str, each.shape)) or "scalar",
                each.dtype,
                each.bytes,
                each.not_finite,
            )
            for each in found.tensors
        ),
        optional=("dtype", "not finite"),
        numeric=("shape",),
    )


def _modules(found: Contents, most: int) -> Table:
    """Return the same by module, as deep as there are no more modules than `most`."""
    depth, groups = 1, _by_module(found.tensors, 1)
    deepest = max(each.name.count(".") for each in found.tensors)
    while depth < deepest and len(deeper := _by_module(found.tensors, depth + 1)) <= most:
        depth, groups = depth + 1, deeper
    return Table(
        "Modules (--all shows every tensor)",
        ("module", "tensors", "values", "bytes", "not finite"),
        tuple(
            (
                printable(name, None) or "(root)",
                len(members),
                sum(each.values for each in members),
                sum(each.bytes for each in members),
                sum(each.not_finite for each in members),
            )
            for name, members in groups.items()
        ),
        optional=("not finite",),
    )


def _without_last_column(table: Table) -> Table:
    return replace(table, columns=table.columns[:-1], rows=tuple(row[:-1] for row in table.rows))


def _by_module(tensors: Sequence[TensorFacts], depth: int) -> dict[str, list[TensorFacts]]:
    """Sort tensors by the first parts of their module's name."""
    groups: dict[str, list[TensorFacts]] = defaultdict(list)
    for each in tensors:
        *module, _ = each.name.split(".")
        groups[".".join(module[:depth])].append(each)
    return groups


def _heading(found: Contents) -> str:
    values = sum(each.values for each in found.tensors)
    size = sum(each.bytes for each in found.tensors)
    parts = [found.format]
    parts += [f"in `{printable(found.key)}`"] if found.key else []
    parts += [f"prefix `{printable(found.prefix)}`"] if found.prefix else []
    count = f"{len(found.tensors)} tensor{'s' * (len(found.tensors) != 1)}"
    total = f"{count}, {human(values)} values, {human_bytes(size)}"
    return f"{found.checkpoint}: {', '.join(parts)}; {total}; no spec"


def _closing(found: Contents, path: str) -> Iterator[str]:
    """Yield totals, what else is in the file, what it looks like, and what comes next."""
    for dtype, count in Counter(each.dtype for each in found.tensors).most_common():
        values = sum(each.values for each in found.tensors if each.dtype == dtype)
        size = sum(each.bytes for each in found.tensors if each.dtype == dtype)
        yield f"{dtype:<9} {values:,} values, {human_bytes(size)}, in {count} tensor{'s' * (count != 1)}"
    yield f"file      {human_bytes(found.file_bytes)}, sha256 {found.sha256}"
    if found.others:
        yield f"besides   {_listed(found.others)}"
    for name, value in found.metadata.items():
        yield f"metadata  {printable(name)} = {printable(' '.join(value.split()), _LONGEST_VALUE)}"
    bad = [each for each in found.tensors if each.not_finite]
    if bad:
        count = sum(each.not_finite for each in bad)
        found_bad = f"{count:,} values are" if count > 1 else "1 value is"
        yield f"warning   {found_bad} NaN or infinite, in {_listed([each.name for each in bad])}"
    yield from _likeness(found)
    yield from _next(found, path)


def _likeness(found: Contents) -> Iterator[str]:
    """Yield which architectures have these tensors, or nearly."""
    others = [match.text for match in found.matches if match != found.choice]
    if found.choice is not None:
        also = f"; the same tensors as {_listed(others)}" if others else ""
        yield f"fits      {found.choice.text}{also}"
    elif others:
        yield f"fits      each of {_listed(others)}: they have the same tensors"
    if not found.matches:
        yield f"fits      no architecture that is known here ({found.compared_with})"
    for near in found.near:
        yield f"near      {_listed(near.factories)}: {printable(near.difference)}"


def _next(found: Contents, path: str) -> Iterator[str]:
    """Yield the commands that come next."""
    file = shlex.quote(path)
    candidates: Sequence[Match] = (found.choice,) if found.choice else found.matches
    for match in candidates[:3]:
        yield f"next      prunecli inspect {file} {match.options}"
    blanks = "" if candidates else ", with blanks to fill in"
    lead = "or" if candidates else "next"
    yield f"{lead:<9} prunecli init {file}, which writes a spec beside it{blanks}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more
