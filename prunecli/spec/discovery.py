"""Where a spec is found: what the user typed, the checkpoint's own metadata, or the TOML beside it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prunecli.arguments import nearest as nearest_name
from prunecli.arguments import nearest_file
from prunecli.errors import MissingSpecError, SpecError
from prunecli.spec.hugging_face import default_inputs, is_folder, with_configuration
from prunecli.spec.model_spec import (
    DataSpec,
    FactoryKind,
    InputSpec,
    ModelSpec,
    Reference,
    change_paths,
    is_absolute,
)
from prunecli.spec.rebase import way_between
from prunecli.spec.tables import MINIMAL_SPEC, from_json_dict, nearest, plain_value
from prunecli.strict_json import parse_json
from prunecli.whole_file import read_whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

METADATA_KEY = "prunecli"
"""The key of a safetensors header under which prunecli keeps its JSON."""
_ENDINGS = (".pruned", ".finetuned", ".trained")
"""What is added to the names of files that were made of a checkpoint."""


def read_spec(
    text_or_path: str | Path,
    *,
    spec_args: Sequence[str] | Mapping[str, object] = (),
    input: Sequence[str] = (),
    data: str | None = None,
    train_data: str | None = None,
    test_data: str | None = None,
) -> ModelSpec:
    """Read a TOML file, or an inline text such as `torchvision:resnet18`.

    Args:
        text_or_path: a path that ends in `.toml`, or an inline factory.
        spec_args: arguments of the factory, as `NAME=VALUE` texts or as a mapping.
        input: one text per input, as in `3x224x224`, `16:int64` or `ids=16:int64`; overrides the spec.
        data: what importance is measured on; overrides the spec.
        train_data: what training trains on; overrides the spec.
        test_data: what accuracy is reported on; overrides the spec.

    Raises:
        SpecError: the text or the file is not a spec.

    >>> read_spec("torchvision:resnet18", spec_args=["num_classes=10"]).args
    {'num_classes': 10}
    """
    spec = _read_text(str(text_or_path))
    return override(
        spec, spec_args=spec_args, input=input, data=data, train_data=train_data, test_data=test_data
    )


def find_spec(
    checkpoint: str | Path,
    explicit: str | Path | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    trust: bool = False,
    spec_args: Sequence[str] | Mapping[str, object] = (),
    input: Sequence[str] = (),
    data: str | None = None,
    train_data: str | None = None,
    test_data: str | None = None,
) -> ModelSpec:
    """Return the spec of a checkpoint: the one given, the one inside, or `NAME.toml` beside it.

    A folder of Hugging Face says itself how its model is built, in `config.json`.

    One inside that names code of somebody's own may not be run unless it is trusted: then `NAME.toml` beside
    the file counts, which for `NAME.pruned.safetensors` is that of the dense model.

    Args:
        checkpoint: the path of the checkpoint.
        explicit: what `--spec` said.
        metadata: what the checkpoint's header holds (`Checkpoint.metadata`).
        trust: let a spec from inside the checkpoint run any code.
        spec_args: see `read_spec`, as are the rest.
        input: see `read_spec`.
        data: see `read_spec`.
        train_data: see `read_spec`.
        test_data: see `read_spec`.

    Raises:
        MissingSpecError: there is none.
        SpecError: it is malformed.
    """
    path = Path(checkpoint)
    beside = _beside(path)
    inside = None
    if explicit is None and metadata and METADATA_KEY in metadata:
        inside = _read_metadata(metadata[METADATA_KEY], path, trust)
    if explicit is not None:
        spec = _read_text(str(explicit))
    elif inside is not None and (beside is None or _may_be_built(inside)):
        spec = inside
    elif beside is not None:
        spec = _read_toml(beside)
    elif (folder := path if path.is_dir() else path.parent) and is_folder(folder):
        spec = ModelSpec(f"hf:{folder.resolve()}", base=Path.cwd())
    else:
        raise MissingSpecError(
            f"`{path.name}` does not say how to build its model. Name it, e.g. `--spec "
            "torchvision:resnet18` or "
            "`--spec model.py:build --input 3x32x32`,\n"
            f"or write `{path.with_suffix('.toml').name}` beside it: {MINIMAL_SPEC}"
        )
    return override(
        spec, spec_args=spec_args, input=input, data=data, train_data=train_data, test_data=test_data
    )


def override(
    spec: ModelSpec,
    *,
    spec_args: Sequence[str] | Mapping[str, object] = (),
    input: Sequence[str] = (),
    data: str | None = None,
    train_data: str | None = None,
    test_data: str | None = None,
) -> ModelSpec:
    """Return the spec with what the user typed in place of what it says; see `read_spec` for the arguments.

    Paths in these sources of data start from the current folder, and may name code whatever the spec may.
    """
    spec = with_configuration(spec)
    args = {**spec.args, **parse_arguments(spec_args)}
    typed = {
        key: change_paths(source, partial(_path_from, spec.base))
        for key, source in (("sample", data), ("train", train_data), ("test", test_data))
        if source
    }
    inputs = tuple(parse_input(text) for text in input) or spec.inputs
    changes: DataSpec = replace(spec.data, **typed)  # type: ignore[arg-type]
    spec = replace(spec, args=args, inputs=inputs, data=changes, granted=spec.granted | set(typed.values()))
    return spec if spec.inputs else replace(spec, inputs=_default_inputs(spec))


def parse_arguments(arguments: Sequence[str] | Mapping[str, object]) -> dict[str, Any]:
    """Turn `NAME=VALUE` texts into values: a TOML or JSON literal if it is one, else the text itself.

    Raises:
        SpecError: a text has no `=`.

    >>> parse_arguments(["width=16", "act=relu", "dims=[2, 4]", "head=null"])
    {'width': 16, 'act': 'relu', 'dims': [2, 4], 'head': None}
    """
    if isinstance(arguments, Mapping):
        return {name: plain_value(value, f"The argument `{name}`") for name, value in arguments.items()}
    values = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise SpecError(
                f"`{text}` is no argument of a factory. Write `NAME=VALUE`, e.g. `num_classes=10`."
            )
        values[name.strip()] = _literal(value.strip())
    return values


def parse_input(text: str) -> InputSpec:
    """Read one `--input`: the shape of one sample, then perhaps a dtype; a name may stand in front.

    Raises:
        SpecError: the text is not of this form.

    >>> parse_input("ids=16:int64")
    InputSpec(shape=(16,), dtype='int64', name='ids', high=None)
    """
    name, equals, rest = text.rpartition("=")
    shape, _, dtype = rest.partition(":")
    sizes = shape.lower().split("x")
    if not all(size.isascii() and size.isdigit() for size in sizes):
        raise SpecError(
            f"`{text}` is no input. Write the shape of one sample, as in `3x224x224` or `ids=16:int64`."
        )
    return InputSpec(tuple(map(int, sizes)), dtype or "float32", name if equals else None)


def _literal(text: str) -> Any:
    """Return the value that `text` spells in TOML or JSON, else the text."""
    try:
        table = tomllib.loads(f"value = {text}")
        if table.keys() == {"value"}:  # a line break in the text would add more
            return plain_value(table["value"], text)
    except (ValueError, SpecError, RecursionError):
        pass
    try:
        return plain_value(json.loads(text), text)
    except (ValueError, SpecError, RecursionError):
        return text


def _read_text(text: str) -> ModelSpec:
    """Read what the user typed, before the inputs of the model need to be known."""
    return _read_toml(Path(text)) if text.lower().endswith(".toml") else ModelSpec(text, base=Path.cwd())


def _read_toml(path: Path) -> ModelSpec:
    try:
        table = tomllib.loads(read_whole(path).decode("utf-8"))
    except FileNotFoundError:
        raise SpecError(f"There is no spec file `{path}`.{nearest_file(path)}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SpecError(f"The spec file `{path}` cannot be read: {reason}.") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"The spec file `{path}` cannot be read: {error}.") from error
    except (ValueError, RecursionError) as error:  # besides its own errors: numbers too long, tables too deep
        raise SpecError(f"`{path}` is not TOML: {error}.") from error
    try:
        return from_json_dict(table, base=path.parent, trusted=True)
    except SpecError as error:
        raise SpecError(f"`{path}`: {error}") from None


def _beside(path: Path) -> Path | None:
    """Return the spec file beside a checkpoint: `net.toml` for `net.pt`, and for `net.pruned.safetensors`."""
    stem = path if path.is_dir() else path.with_suffix("")
    names = [stem.name]
    while Path(names[-1]).suffix in _ENDINGS:
        names.append(Path(names[-1]).stem)
    candidates = [stem.with_name(f"{name}.toml") for name in names if name]
    return next((each for each in candidates if each != path and each.is_file()), None)


def _may_be_built(spec: ModelSpec) -> bool:
    """Return whether the spec inside a checkpoint names a model that may be built."""
    own_code = Reference.parse(spec.factory).kind in (
        FactoryKind.FILE,
        FactoryKind.MODULE,
        FactoryKind.HUGGING_FACE,
    )
    return spec.may_run(spec.factory) or not own_code


def _read_metadata(text: str, path: Path, trust: bool) -> ModelSpec:
    """Read the spec that a prunecli file carries; its relative paths start from the file's folder."""
    try:
        table = parse_json(text)
        return from_json_dict(table["spec"], base=path.parent, trusted=trust)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(
            f"The spec inside `{path.name}` is damaged ({error}). Give one with `--spec`."
        ) from error
    except SpecError as error:
        raise SpecError(
            f"The spec inside `{path.name}` is damaged: {error} Give one with `--spec`."
        ) from None


def _path_from(base: Path, path: str) -> str:
    """Rewrite a path typed by the user, seen from the current folder, as seen from `base`."""
    if is_absolute(path) or base.resolve() == Path.cwd():
        return path
    whole = Path(os.path.normpath(Path.cwd() / path))
    return way_between(base.resolve(), whole) or str(whole)


_TORCHVISION_SIDES = {"inception_v3": 299}
_TORCHVISION_VIDEO = {
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), (3, 16, 112, 112)),
    **dict.fromkeys(("s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"), (3, 16, 224, 224)),
}


def _default_inputs(spec: ModelSpec) -> tuple[InputSpec, ...]:
    """Return the input that torchvision, timm or a configuration of transformers made the model for.

    Raises:
        SpecError: the factory is someone else's.
    """
    factory = Reference.parse(spec.factory)
    if factory.kind is FactoryKind.TORCHVISION:
        side = spec.args.get("image_size", _TORCHVISION_SIDES.get(factory.name, 224))
        if isinstance(side, int):
            return (InputSpec(_TORCHVISION_VIDEO.get(factory.name, (3, side, side))),)
    if factory.kind is FactoryKind.TIMM:
        return (InputSpec(_timm_input(factory.name, spec.args)),)
    if factory.kind is FactoryKind.TRANSFORMERS:
        return default_inputs(factory.name, spec.args)
    if factory.kind is FactoryKind.MODULE and not _is_there(factory.place):
        hint = nearest_name(factory.place, ("torchvision", "timm", "transformers"))
        raise SpecError(f"`{spec.factory}`: there is no package `{factory.place}` here.{hint}")
    raise SpecError(
        f"The spec of `{spec.factory}` does not say what the model takes in. "
        "Add `[input]` with the `shape` of one sample, or pass e.g. `--input 3x32x32`."
    )


def _is_there(module: str) -> bool:
    """Say whether a package can be found, from the current folder too; nothing is imported."""
    top = module.partition(".")[0]
    here = Path(top)
    return here.is_dir() or here.with_suffix(".py").is_file() or importlib.util.find_spec(top) is not None


def _timm_input(name: str, args: Mapping[str, object]) -> tuple[int, ...]:
    """Return the shape that timm states for the model. Importing timm imports torch."""
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise SpecError(
            f"`timm:{name}` needs timm. Install it with `pip install 'prunecli[timm]'`."
        ) from error
    config = timm.get_pretrained_cfg(name.partition(".")[0] if not timm.is_model_pretrained(name) else name)
    if config is None:
        known, plain = timm.list_models(), name.partition(".")[0]
        if plain not in known:
            raise SpecError(
                f"timm has no model `{name}`: {nearest(plain, known, '`timm.list_models()` lists them.')}"
            )
        raise SpecError(f"timm states no input size for `{name}`. Pass one, e.g. `--input 3x224x224`.")
    channels, *sides = config.input_size
    size = args.get("img_size")
    if isinstance(size, int):
        sides = [size, size]
    return (args.get("in_chans", channels), *sides)
