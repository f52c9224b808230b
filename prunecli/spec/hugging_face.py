"""Folders of Hugging Face and classes of transformers: what they are built from, and what they take in.

A model of transformers is a class and a configuration. Here `transformers:CLASS` is the factory, and its
arguments are the entries of `config.json`, so that a spec needs no folder to build the model again. The only
file that imports transformers. Nothing is ever fetched, and no code but that of transformers itself is run.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunecli.errors import SpecError
from prunecli.spec.model_spec import FactoryKind, InputSpec, ModelSpec, Reference
from prunecli.spec.tables import nearest, plain_value
from prunecli.strict_json import Json, JsonError, parse_json
from prunecli.whole_file import read_whole

CONFIG = "config.json"
_COUNTS = re.compile(r"^(num|n)_|(^|_)(layers?|depths?|blocks?|labels|classes|experts)$")
_MOST_COUNTED = 2**20
"""Of layers, labels, experts, heads, positions; how many a model really has is for its weights to say."""
_MOST_BYTES = 16 * 2**20
"""Of a configuration; large ones, with a name for each of 20,000 labels, have one or two million."""
_SIGNS = {"architectures", "model_type"}
"""Entries of which every configuration of transformers has one."""
TEXT_LENGTH = 16
"""How many tokens a made-up text has, unless the spec says."""

_ATTENTION = ("eager", "sdpa")
"""Implementations of attention that are part of torch and transformers; others are fetched or compiled."""
_DROPPED = ("auto_map", "transformers_version", "attn_implementation")
"""Entries of `config.json` that say nothing of the model, or name code; as do those that begin with `_`."""


def is_folder(path: Path) -> bool:
    """Say whether a folder holds a configuration of transformers; many programs call theirs `config.json`."""
    try:
        table = _parsed(path / CONFIG)
    except (OSError, JsonError):
        return False
    return isinstance(table, dict) and not _SIGNS.isdisjoint(table)


def with_configuration(spec: ModelSpec) -> ModelSpec:
    """Replace `hf:FOLDER#CLASS` by `transformers:CLASS` with the folder's configuration as arguments.

    Raises:
        SpecError: there is no such configuration, it names no class, or the spec may not read the folder.
    """
    reference = Reference.parse(spec.factory)
    if reference.kind is not FactoryKind.HUGGING_FACE:
        return spec
    if not spec.may_run(spec.factory):
        raise SpecError(
            f"The spec inside the checkpoint names `{spec.factory}`, a folder of this machine. Name the "
            "model yourself with `--spec` (`spec=`)."
        )
    path = spec.resolve(reference.place) / CONFIG
    table = read_configuration(path)
    name = reference.name or _architecture(table, path)
    return replace(spec, factory=f"transformers:{name}", args={**without_code(table), **spec.args})


def read_configuration(path: Path) -> dict[str, Any]:
    """Return what a `config.json` holds.

    Raises:
        SpecError: there is none, or it is no table; or the model is quantised.
    """
    try:
        table = _parsed(path)
    except FileNotFoundError:
        raise SpecError(
            f"There is no `{path}`. `hf:FOLDER` needs a folder with {CONFIG}, as `save_pretrained` writes it."
        ) from None
    except (OSError, JsonError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SpecError(f"`{path}` cannot be read: {reason}.") from None
    if not isinstance(table, dict):
        raise SpecError(f"`{path}` holds no table, as a configuration of transformers is one.")
    if "quantization_config" in table:
        raise SpecError(f"`{path}` describes a quantised model, which cannot be cut. Prune it before that.")
    return {key: plain_value(value, f"`{path}`") for key, value in table.items()}


def _parsed(path: Path) -> Json:
    """Return the JSON of a file, unless it is larger than any configuration."""
    return parse_json(read_whole(path, _MOST_BYTES), finite=False)


def without_code(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what names code (kernels, files of a repository), in its parts too."""
    return {
        key: without_code(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if key not in _DROPPED and not key.startswith("_")
    }


def model_class(name: str) -> Any:
    """Return the class of transformers by that name; the package is imported.

    Raises:
        SpecError: transformers is not installed, or has no such model.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise SpecError(
            f"`transformers:{name}` needs transformers. Install it with "
            "`pip install 'prunecli[transformers]'`."
        ) from error
    found = getattr(transformers, name, None)
    if not _is_model(found, transformers):
        names = (each for each in dir(transformers) if "For" in each or each.endswith("Model"))
        known = [each for each in names if not each.endswith("PreTrainedModel")]
        raise SpecError(f"transformers has no model `{name}`: {nearest(name, known, 'check its name.')}")
    return found


def configuration(name: str, args: Mapping[str, object]) -> Any:
    """Return the configuration that a model is built from; entries that are missing have their defaults.

    Raises:
        SpecError: transformers refuses the entries.
    """
    kind = model_class(name).config_class
    attention = args.get("attn_implementation")
    if attention is not None and attention not in _ATTENTION:
        raise SpecError(f"`attn_implementation` = `{attention}` is not one of {', '.join(_ATTENTION)}.")
    entries = without_code(args)
    _check_counts(entries)
    stated = entries.get("model_type", kind.model_type)
    if stated != kind.model_type:
        raise SpecError(
            f"`{name}` is built from `{kind.model_type}`, but the configuration is of `{stated}`."
        )
    try:
        with offline_and_quiet():
            config = kind.from_dict(entries)
    except Exception as error:  # each configuration checks itself in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise SpecError(f"The configuration of `{name}` is refused by transformers: {reason}") from error
    if attention is not None:
        config._attn_implementation = attention
    return config


def _check_counts(entries: Mapping[str, Any]) -> None:
    """Refuse numbers of layers, labels and the like that a configuration would already fill the memory with.

    Raises:
        SpecError: one is beyond any model.
    """
    for key, value in entries.items():
        if isinstance(value, Mapping):
            _check_counts(value)
            continue
        numbers = value if isinstance(value, list) else [value]
        if _COUNTS.search(key) and any(isinstance(each, int) and each > _MOST_COUNTED for each in numbers):
            raise SpecError(
                f"The configuration has `{key}` = {value!r:.60}, more than {_MOST_COUNTED:,}: too many."
            )


def build(name: str, args: Mapping[str, object]) -> Any:
    """Build a model from its configuration. It keeps no cache of keys and values, which would be outputs."""
    config = configuration(name, args)
    if getattr(config, "use_cache", False):
        config.use_cache = False
    with offline_and_quiet():
        return model_class(name)(config)


def default_inputs(name: str, args: Mapping[str, object]) -> tuple[InputSpec, ...]:
    """Return what a model takes in, from its configuration: pictures of its size, or texts of 16 tokens.

    Raises:
        SpecError: it takes in something else, so that the spec has to say.
    """
    main, config = model_class(name).main_input_name, configuration(name, args)
    if main == "pixel_values" and isinstance(getattr(config, "image_size", None), (int, list, tuple)):
        size = config.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return (InputSpec((getattr(config, "num_channels", 3), *sides), name=main),)
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if main == "input_ids" and isinstance(vocabulary, int):
        longest = getattr(config, "max_position_embeddings", None) or TEXT_LENGTH
        length = (min(TEXT_LENGTH, longest),)
        names = (main, "decoder_input_ids") if config.is_encoder_decoder else (main,)
        ids = tuple(InputSpec(length, "int64", each, vocabulary) for each in names)
        return (*ids, InputSpec(length, "int64", "attention_mask"))
    example = "pixel_values=3x224x224" if main == "pixel_values" else "input_ids=16:int64"
    raise SpecError(
        f"The configuration of `{name}` does not say what the model takes in. Add [[input]] tables with "
        f"`name`, `shape` and `dtype` to the spec, or pass e.g. `--input {example}`."
    )


@contextmanager
def offline_and_quiet() -> Iterator[None]:
    """Keep transformers from fetching anything, and from printing progress and advice."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    logging = importlib.import_module("transformers.utils.logging")
    was_offline, verbosity = constants.HF_HUB_OFFLINE, logging.get_verbosity()
    showed_bars = logging.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        logging.set_verbosity(verbosity)
        if showed_bars:
            logging.enable_progress_bar()


def _architecture(table: Mapping[str, Any], path: Path) -> str:
    match table.get("architectures"):
        case [str(name)] if name.isidentifier():
            return name
        case _:
            raise SpecError(
                f"`{path}` does not name one class under `architectures`. Name it: "
                f"`hf:{path.parent}#BertForSequenceClassification`."
            )


def _is_model(found: object, transformers: Any) -> bool:
    """Say whether it is a model that ships with transformers, and can be built."""
    return (
        isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and found.__module__.startswith("transformers.models.")
        and getattr(found, "config_class", None) is not None
    )
