"""The story of `init`: a checkpoint -> a spec to start from, filled in as far as its tensors tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunecli.architectures import Recognised
from prunecli.checkpoint.names import printable
from prunecli.checkpoint.read import Checkpoint
from prunecli.errors import SpecError, UsageError
from prunecli.export.files import check_free, write_file
from prunecli.pipeline.finding import likeness, read
from prunecli.pipeline.settings import Samples, Source
from prunecli.pipeline.starter import BLANK_FACTORY, Starter
from prunecli.spec import DataSpec, InputSpec, ModelSpec, override, read_spec
from prunecli.spec.discovery import METADATA_KEY, parse_input
from prunecli.spec.hugging_face import CONFIG, is_folder

_VOCABULARY = 128
"""Tokens of a made-up text."""
_PICTURE, _LARGE_PICTURE, _LARGE_KERNEL = 32, 224, 7
"""Sides of pictures; networks whose first kernel is large were made for large ones."""
_CLIP = (16, 112, 112)
_NAMED = 3
"""How many architectures are named that the tensors resemble."""
_LIBRARIES = {"hf": "its configuration"}


@dataclass(frozen=True)
class Started:
    """A spec that was written."""

    path: Path
    starter: Starter
    is_beside: bool
    """Whether the spec is where it is found without `--spec`."""


def init(
    checkpoint: str,
    source: Source | None = None,
    samples: Samples | None = None,
    out: str | None = None,
    force: bool = False,
) -> Started:
    """Write a spec for a checkpoint: NAME.toml beside it, or where `out` says.

    Args:
        checkpoint: the file.
        source: how it is read, and the input if the user knows it.
        samples: sources of data to write down.
        out: a folder, or a path that ends in .toml.
        force: replace a file that is there.

    Raises:
        UsageError: the file needs no spec, or `out` is no place for one.
        OutputError: the spec cannot be written, or is there already.
    """
    source, samples = source or Source(), samples or Samples()
    path = _place(Path(checkpoint), out)
    check_free([path], force)
    file = read(checkpoint, source)
    if METADATA_KEY in file.metadata:
        raise UsageError(f"`{file.path.name}` was written by prunecli and holds its spec; it needs no other.")
    starter = start(file, likeness(file), source, samples, path.parent)
    write_file(path, _encoded(starter.text), force)
    return Started(path, starter, path == _place(Path(checkpoint), None))


def _encoded(text: str) -> bytes:
    """Return a spec as UTF-8, which TOML is."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        line = next(line for line in text.splitlines() if text[error.start] in line)
        raise UsageError(
            f"A spec cannot hold `{printable(line)}`: that is no UTF-8. Give the file or folder another name."
        ) from None


def start(file: Checkpoint, found: Recognised, source: Source, samples: Samples, folder: Path) -> Starter:
    """Return what is known of the model, for a spec in `folder`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    match = found.choice or next(iter(found.matches), None)
    home = file.path if file.path.is_dir() else file.path.parent
    factory, how, built = BLANK_FACTORY, None, None
    if match:
        factory = built = match.factory
        how = "the checkpoint has exactly its names and shapes"
    elif is_folder(home):
        factory, built = f"hf:{Path(os.path.relpath(home, folder)).as_posix()}", f"hf:{home.resolve()}"
        how = f"the folder has a {CONFIG}"
    args = dict(match.args) if match else {}
    inputs, origin = _inputs(source, built, args, shapes)
    return Starter(
        checkpoint=file.path.name,
        factory=factory,
        args=args,
        inputs=inputs,
        input_source=origin,
        factory_source=how,
        same=tuple(each.text for each in found.matches if each != match),
        near=tuple(f"{', '.join(each.factories[:_NAMED])}: {each.difference}" for each in found.near),
        classes=_classes(shapes),
        data=_data(samples, folder),
    )


def _data(samples: Samples, folder: Path) -> DataSpec:
    """Return the sources that the user typed, seen from the spec's folder."""
    return override(
        ModelSpec(BLANK_FACTORY, inputs=(InputSpec((1,)),), base=folder),
        data=samples.data,
        train_data=samples.train_data,
        test_data=samples.test_data,
    ).data


def _place(checkpoint: Path, out: str | None) -> Path:
    """Return where the spec goes."""
    if checkpoint.is_dir():
        checkpoint = checkpoint if checkpoint.name else checkpoint.resolve()
        name = checkpoint.with_name(f"{checkpoint.name}.toml")
    else:
        name = checkpoint.with_suffix(".toml") if checkpoint.name else checkpoint
    if out is None:
        return name
    if out.lower().endswith(".toml") and not Path(out).is_dir():
        return Path(out)
    if Path(out).suffix and not Path(out).is_dir():
        raise UsageError(f"`--out {out}`: name a folder, or a file that ends in .toml.")
    return Path(out) / name.name


def _inputs(
    source: Source, factory: str | None, args: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[InputSpec, ...], str]:
    """Return what the user said, or the library made the model for, or the first layer tells; and which."""
    if source.input:
        return tuple(map(parse_input, source.input)), "As you said."
    if factory is not None:
        library = _LIBRARIES.get(factory.partition(":")[0], factory.partition(":")[0])
        try:
            inputs = read_spec(factory, spec_args=args).inputs
        except SpecError:  # timm or transformers is not installed
            pass
        else:
            return inputs, f"What {library} made it for; write the size of your own samples."
    first = next(((name, shape) for name, shape in shapes.items() if len(shape) > 1 and all(shape)), None)
    if first is None:
        return (InputSpec((1,)),), "FILL IN: no layer in the file tells it."
    name, shape = first
    return _guess(name, shape, has_bias=f"{name.rpartition('.')[0]}.bias" in shapes)


def _guess(name: str, shape: tuple[int, ...], has_bias: bool) -> tuple[tuple[InputSpec, ...], str]:
    """Return what goes into the first layer, by the shape of its weight."""
    width, layer = shape[1], f"`{printable(name)}`, the first layer,"
    channels = f"{width:,} channel{'s' * (width != 1)}"
    match len(shape):
        case 2 if "emb" in name.lower() and not has_bias:
            item = InputSpec((_VOCABULARY,), "int64", high=shape[0])
            return (item,), f"FILL IN the length: {layer} seems to look up {shape[0]:,} tokens."
        case 2:
            return (InputSpec((width,)),), f"{layer} takes {width:,} numbers."
        case 3:
            return (InputSpec((width, _VOCABULARY)),), f"FILL IN the length: {layer} takes {channels}."
        case 5:
            return (InputSpec((width, *_CLIP)),), f"FILL IN time, height and width: {layer} takes {channels}."
        case _:
            side = _LARGE_PICTURE if max(shape[2:], default=0) >= _LARGE_KERNEL else _PICTURE
            item = InputSpec((width, side, side))
            return (item,), f"FILL IN height and width: {layer} takes {channels}."


def _classes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, str] | None:
    """Return how many outputs the last layer has, and what it is called."""
    last = next((name for name in reversed(list(shapes)) if len(shapes[name]) > 1), None)
    return (shapes[last][0], last.rpartition(".")[0]) if last else None
