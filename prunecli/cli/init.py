"""`prunecli init`: a spec for a checkpoint, to start from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.options import CheckpointPath, Style, with_options
from prunecli.cli.panels import DATA, MODEL, SHOWN
from prunecli.cli.streams import write_result
from prunecli.pipeline.settings import Samples, Source

if TYPE_CHECKING:
    from prunecli.pipeline.init import Started
    from prunecli.pipeline.starter import Starter

NAME = "init"
EXAMPLES = """Examples:
  prunecli init model.pt
  prunecli init model.pt --data imagefolder:val --out specs/model.toml"""

_MODEL, _DATA, _FILES = MODEL.options, DATA.options, "Files"
Input = Annotated[
    list[str],
    typer.Option("--input", help=_MODEL["input"].help, metavar="SHAPE", rich_help_panel=MODEL.title),
]
Key = Annotated[str | None, typer.Option(help=_MODEL["key"].help, metavar="KEY", rich_help_panel=MODEL.title)]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help=_MODEL["allow_pickle"].help, metavar="", rich_help_panel=MODEL.title),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Write down the samples that importance is measured on.",
        metavar="SOURCE",
        rich_help_panel=DATA.title,
    ),
]
TrainData = Annotated[
    str | None,
    typer.Option(help="Write down what training trains on.", metavar="SOURCE", rich_help_panel=DATA.title),
]
TestData = Annotated[
    str | None,
    typer.Option(
        help="Write down what accuracy is measured on.", metavar="SOURCE", rich_help_panel=DATA.title
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        help="A folder, or the path of the spec. Default: NAME.toml beside the checkpoint.",
        metavar="PATH",
        rich_help_panel=_FILES,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a spec that is there.", metavar="", rich_help_panel=_FILES)
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print only the path written.", metavar="", rich_help_panel=SHOWN.title
    ),
]


@with_options
def command(
    checkpoint: CheckpointPath,
    style: Style,
    input: Input = [],  # noqa: B006 - typer wants a list
    key: Key = None,
    allow_pickle: AllowPickle = False,
    data: Data = None,
    train_data: TrainData = None,
    test_data: TestData = None,
    out: Out = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a spec for a checkpoint, every key explained, and filled in as far as its tensors tell."""
    from prunecli.pipeline.init import init

    source = Source(input=tuple(input), key=key, allow_pickle=allow_pickle)
    samples = Samples(data=data, train_data=train_data, test_data=test_data)
    started = init(checkpoint, source, samples, out, force)
    write_result(str(started.path) if quiet else render(started, style, checkpoint))


def render(started: Started, style: Style, checkpoint: str) -> str:
    """Return what was written in the form asked for."""
    from prunecli.cli.tables import Table, to_csv, to_markdown, to_terminal

    table = Table("", ("key", "value"), tuple(_rows(started.starter)))
    closing = list(_closing(started, checkpoint))
    match style.style:
        case "json":
            return json.dumps({"version": 1, **_as_plain(started)}, indent=2)
        case "csv":
            return to_csv(table)
        case "md":
            return to_markdown([table], f"## {started.path.name}", closing)
        case "table":
            return to_terminal([table], f"wrote {started.path}", closing)


def _rows(starter: Starter) -> Iterator[tuple[str, str]]:
    """Yield what the spec says."""
    yield "factory", starter.factory if starter.is_known else f"{starter.factory} (fill in)"
    for name, value in starter.args.items():
        yield f"args {name}", json.dumps(value)
    yield "input", " and ".join("x".join(map(str, item.shape)) for item in starter.inputs)
    for key, source in _sources(starter).items():
        if source:
            yield key, source


def _closing(started: Started, checkpoint: str) -> Iterator[str]:
    """Yield what else has such tensors, how the input is known, and the command that comes next."""
    starter = started.starter
    if starter.same:
        yield f"The same tensors, perhaps another network: {', '.join(starter.same)}"
    yield starter.input_source
    spec = "" if started.is_beside else f" --spec {shlex.quote(str(started.path))}"
    lead = "Next" if starter.is_known else "Fill in the factory, then"
    yield f"{lead}: `prunecli inspect {shlex.quote(checkpoint)}{spec}`"


def _as_plain(started: Started) -> dict[str, object]:
    """Return what was written as JSON holds it."""
    starter = started.starter
    return {
        "file": started.path.name,
        "is_known": starter.is_known,
        "factory": starter.factory,
        "args": dict(starter.args),
        "input": [list(item.shape) for item in starter.inputs],
        "data": _sources(starter),
        "same": list(starter.same),
    }


def _sources(starter: Starter) -> dict[str, str | None]:
    return {key: getattr(starter.data, key) for key in ("sample", "train", "test")}
