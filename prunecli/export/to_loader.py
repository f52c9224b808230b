"""What a pruned file says of itself -> the text of a small loader that needs torch and safetensors alone.

The text holds the same code that `prunecli.load` runs (`rebuild.py`), the twins that the file needs, and a
call of the factory; widths and sizes are read from the file each time.
"""

from __future__ import annotations

import ast
import inspect
import json
import keyword
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from prunecli.errors import CheckpointError, OutputError
from prunecli.export import rebuild
from prunecli.export.record import FORMAT_VERSION, METADATA_KEY, PrunedRecord
from prunecli.graph import twins
from prunecli.spec import ModelSpec
from prunecli.spec.hugging_face import without_code
from prunecli.spec.model_spec import FactoryKind, Reference

_HEAD = '''\
"""Rebuilds a network that prunecli made smaller. It needs torch and safetensors, and{needs}.

    from load_pruned import load
    model = load({example})
"""

from __future__ import annotations

{imports}import json
{more}from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
{functional}from safetensors import safe_open
from torch import {names}

HERE = Path(__file__).resolve().parent
'''

_LOAD = '''
PRUNED = HERE / {file_name}


def load(path: str | Path = PRUNED, factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Return the pruned network, on the CPU, in eval mode.

    Args:
        path: The safetensors file.
        factory: Builds the dense network; {default}.
    """
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[{key}])
        tensors = {{name: file.get_tensor(name).clone() for name in file.keys()}}
    if record["format"] > {version}:
        raise ValueError(f"`{{path}}` has format {{record['format']}}, but this loader reads up to {version}")
    return rebuild(partial(build, factory or default_factory), rewrite, tensors, record)


def build(factory: Callable[[], nn.Module], device: str) -> nn.Module:
    """Build without memory where the factory can, else for real; the random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device(device):
                return factory()
        except Exception:
            if device == "cpu":
                raise
            return factory()
'''

_NO_TWINS = '''
def rewrite(model: nn.Module, rewritten: Mapping[str, str]) -> None:
    """Refuse files other than the kind this loader was written for."""
    if rewritten:
        raise KeyError("this loader was written for a file without rewritten modules")
'''

_FACTORIES = {
    FactoryKind.TORCHVISION: """
        from torchvision.models import get_model

        return get_model({name}{args})
    """,
    FactoryKind.TIMM: """
        import timm

        return timm.create_model({name}{args})
    """,
    FactoryKind.TRANSFORMERS: """
        import transformers

        found = getattr(transformers, {name})
        config = found.config_class.from_dict({args})
        config.use_cache = False
        return found(config)
    """,
    FactoryKind.MODULE: """
        found = importlib.import_module({place})
        for part in {name}.split("."):
            found = getattr(found, part)
        return found({args})
    """,
    FactoryKind.FILE: """
        source = HERE / {place}
        if not source.is_file():
            raise FileNotFoundError(f"`{{source}}` is missing. Copy it beside this file, or pass `factory`.")
        spec = importlib.util.spec_from_file_location("dense_network", source)
        found = sys.modules["dense_network"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        for part in {name}.split("."):
            found = getattr(found, part)
        return found({args})
    """,
}


def write_loader(record: PrunedRecord, spec: ModelSpec | None, file_name: str = "model.safetensors") -> str:
    """Return the text of a Python file with `load(path, factory=None)`.

    Args:
        record: What the pruned file says of itself.
        spec: How the dense model is built. Without one, or with one that came inside a file and may not be
            run, the loader has no factory of its own and asks for one.
        file_name: The safetensors file that it loads by default, beside itself.

    Raises:
        OutputError: when the arguments of the factory cannot be written as Python.
        CheckpointError: when the file needs a twin that nobody knows.
    """
    embedded = spec if spec is not None and _may_embed(spec) else None
    functional, names, twin_text = _twins(record)
    default = _default_factory(embedded)
    imports = [name for name in ("importlib", "importlib.util", "sys") if f"{name}." in default]
    parts = (
        _HEAD.format(
            needs=f" `{_harmless(embedded.factory)}`" if embedded else " a factory for the dense network",
            example="" if embedded else "factory=make_dense_network",
            imports="".join(f"import {name}\n" for name in imports if name != "sys"),
            more="".join(f"import {name}\n" for name in ("math", "sys") if f"{name}." in default + twin_text),
            functional=functional,
            names=names,
        ),
        _LOAD.format(
            file_name=_quoted(file_name),
            key=_quoted(METADATA_KEY),
            version=FORMAT_VERSION,
            default=f"`{_harmless(embedded.factory)}` if None" if embedded else "must be given",
        ),
        default,
        _without_head(inspect.getsource(rebuild)),
        twin_text,
    )
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _may_embed(spec: ModelSpec) -> bool:
    """Say whether the call of the factory may be written into a file that somebody will run."""
    kind = Reference.parse(spec.factory).kind
    if spec.may_run(spec.factory) or kind is FactoryKind.TRANSFORMERS:  # whose arguments are but numbers
        return True
    return kind in (FactoryKind.TORCHVISION, FactoryKind.TIMM) and not spec.args


def _default_factory(spec: ModelSpec | None) -> str:
    head = 'def default_factory() -> nn.Module:\n    """Build the dense network."""\n'
    if spec is None:
        return head + '    raise ValueError("Pass `factory`, a function that builds the dense network.")'
    reference = Reference.parse(spec.factory)
    place = (
        reference.place.replace("\\", "/").rpartition("/")[2] if reference.kind is FactoryKind.FILE else ""
    )
    args = _written(_arguments(spec, reference))
    if reference.kind is FactoryKind.TRANSFORMERS:
        args = repr(without_code(spec.args))
    body = _FACTORIES[reference.kind].format(
        name=_quoted(reference.name),
        place=_quoted(place or reference.place),
        args=f", {args}" if args and reference.kind in (FactoryKind.TORCHVISION, FactoryKind.TIMM) else args,
    )
    return head + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")


def _arguments(spec: ModelSpec, reference: Reference) -> dict[str, Any]:
    """Return the arguments of the factory, with what keeps torchvision from fetching or drawing weights."""
    if reference.kind is not FactoryKind.TORCHVISION:
        return dict(spec.args)
    from torchvision.models import get_model_builder

    known = inspect.signature(get_model_builder(reference.name)).parameters
    defaults = {"weights": None, "weights_backbone": None, "init_weights": False}
    slow = reference.name in ("googlenet", "inception_v3")
    chosen = {
        key: value for key, value in defaults.items() if key in known or (slow and key == "init_weights")
    }
    return {**chosen, **spec.args}


def _twins(record: PrunedRecord) -> tuple[str, str, str]:
    """Return the imports, the names from torch and the source of the twins that the file needs."""
    wanted = sorted(set(record.rewritten.values()))
    if not wanted:
        return "", "nn", _NO_TWINS
    unknown = [name for name in wanted if name not in twins.TWINS]
    if unknown:
        raise CheckpointError(
            f"The file rewrites modules as `{unknown[0]}`, which this prunecli does not know."
        )
    classes = dict.fromkeys(base for name in wanted for base in _own_bases(twins.TWINS[name]))
    table = "TWINS = {" + ", ".join(f"{_quoted(name)}: {name}" for name in wanted) + "}"
    install = inspect.getsource(twins.install)
    text = "\n\n\n".join([*(inspect.getsource(twin).strip() for twin in classes), table, install.strip()])
    return "import torch.nn.functional as F\n", "Tensor, nn", text + "\n\n\nrewrite = install"


def _own_bases(twin: type) -> list[type]:
    """Return the classes that a twin is made of, those of torch left out, bases first."""
    return [base for base in reversed(twin.__mro__) if base.__module__.startswith("prunecli.")]


def _without_head(source: str) -> str:
    """Leave out the docstring and the imports: the loader has its own."""
    return source[re.search(r"^_REGISTERED", source, re.MULTILINE).start() :]  # type: ignore[union-attr]


def _harmless(text: str) -> str:
    """Leave only what can do no harm inside a docstring."""
    return re.sub(r"[^\w.:/ -]", "_", text)


def _quoted(text: str) -> str:
    """Write a text as a Python literal; one of JSON is also one of Python."""
    return json.dumps(text, ensure_ascii=False)


def _written(args: Mapping[str, Any]) -> str:
    """Write keyword arguments as Python."""
    for name, value in args.items():
        try:
            ast.literal_eval(repr(value))
        except (ValueError, SyntaxError):
            raise OutputError(f"The argument `{name}` of the factory cannot be written as Python.") from None
    if any(keyword.iskeyword(name) for name in args):
        return f"**{dict(args)!r}"
    return ", ".join(
        f"{name}={_quoted(value) if type(value) is str else repr(value)}" for name, value in args.items()
    )
