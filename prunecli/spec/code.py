"""Names of code -> objects: imports the file or module that a spec names, if the spec may run it."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from prunecli.errors import SpecError
from prunecli.spec.model_spec import TRUSTED_PACKAGES, FactoryKind, ModelSpec, Reference
from prunecli.whole_file import read_whole

Factory = Callable[..., Any]

TRUST_OR_NAME = (
    "If you trust the file, pass `--trust-spec` (in Python `trust_spec=True`), or name the model yourself "
    "with `--spec` (`spec=`)."
)


def import_object(spec: ModelSpec, text: str, *, trust: bool = False) -> Factory:
    """Return what `file.py:NAME` or `package.module:NAME` stands for.

    Args:
        spec: says where relative paths start, and whether the text may be run.
        text: the name.
        trust: run the code even if the spec came inside a checkpoint.

    Raises:
        SpecError: there is no such file, module or name; importing it failed; or it is not trusted.
    """
    reference = Reference.parse(text)
    trusted = trust or spec.may_run(text)
    if not trusted:
        _check_package(text, reference)
        module = _import_module(reference.place, text)
    else:
        with _importable(_folder(spec, reference)):
            is_file = reference.kind is FactoryKind.FILE
            module = (
                _import_file(spec.resolve(reference.place), text)
                if is_file
                else _import_module(reference.place, text)
            )
    found: Any = module
    for part in reference.name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise SpecError(f"`{text}`: `{reference.place}` has no `{part}`.") from None
    if not trusted:
        _check_origin(text, found)
    if not callable(found):
        raise SpecError(f"`{text}` is {type(found).__name__}, not a function or a class.")
    return found  # type: ignore[no-any-return]


def code_digest(spec: ModelSpec, text: str) -> str | None:
    """Return the SHA-256 of the file that holds what `text` names; None where none is known.

    What the file imports from its own folder counts too. A module is found if it has been imported, as that
    of a factory is once its model is built.
    """
    reference = Reference.parse(text)
    if reference.kind is FactoryKind.TRANSFORMERS:
        return None
    if reference.kind is FactoryKind.FILE:
        path = spec.resolve(reference.place)
    else:
        path = Path(getattr(sys.modules.get(reference.place), "__file__", None) or "")
    if not path.is_file():
        return None
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _with_neighbours(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _with_neighbours(path: Path) -> list[Path]:
    """Return a file, and those of its folder and below that it imports, and that these import."""
    root, found = path.parent, [path]
    for file in found:  # which grows meanwhile
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for place in _imported(tree, root, file.parent):
            files = (place.with_suffix(".py"), place / "__init__.py")
            found += [each for each in files if each.is_file() and each not in found]
    return found


def _imported(tree: ast.AST, root: Path, here: Path) -> Iterator[Path]:
    """Yield where the modules that code imports would lie, and the packages they are in; without suffix."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            start, names = root, [each.name.split(".") for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = (here, *here.parents)[node.level - 1] if node.level else root
            module = node.module.split(".") if node.module else []
            names = [[*module, each.name] for each in node.names]
        else:
            continue
        for parts in names:
            yield from (start.joinpath(*parts[:end]) for end in range(1, len(parts) + 1))


def call_factory(spec: ModelSpec, text: str, factory: Factory, args: Mapping[str, object]) -> Any:
    """Call the user's factory with keyword arguments; what goes wrong becomes a SpecError with a cause."""
    _check_arguments(factory, args, text)
    try:
        with _importable(_folder(spec, Reference.parse(text))):
            return factory(**args)
    except SpecError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(f"`{text}` failed with {type(error).__name__}: {first_line(error)}.") from error


def _check_arguments(factory: Factory, args: Mapping[str, object], text: str) -> None:
    """Raise a SpecError that shows the signature if `args` do not fit it."""
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # built in C: calling it is the only check
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        raise SpecError(
            f"`{text}` does not take these arguments: {error}. Its signature is {_shorten(str(signature))}; "
            "set them with `args` in the spec or `--spec-arg NAME=VALUE`."
        ) from None


def _check_package(text: str, reference: Reference) -> None:
    package = reference.place.partition(".")[0]
    if reference.kind is FactoryKind.FILE or package not in TRUSTED_PACKAGES or "." in reference.name:
        raise SpecError(
            f"The spec inside the checkpoint names `{text}`, which is code outside "
            f"{', '.join(TRUSTED_PACKAGES)}. {TRUST_OR_NAME}"
        )


def _check_origin(text: str, found: object) -> None:
    """Refuse what is no model in a trusted package: what it imports, downloads, converts or saves with.

    A model is a class derived from nn.Module; in torchvision and timm, also a function
    that is public in a public module.
    """
    package, *parts = str(getattr(found, "__module__", "")).split(".")
    is_inside = package in TRUSTED_PACKAGES and parts[:1] == ["models"]
    if inspect.isclass(found):
        is_model = any((kind.__module__, kind.__name__) == _MODULE_CLASS for kind in found.__mro__)
    else:
        is_public = not any(part.startswith("_") for part in (*parts, getattr(found, "__name__", "_")))
        is_model = inspect.isfunction(found) and is_public and package != "transformers"
    if not (is_inside and is_model):
        raise SpecError(f"The spec inside the checkpoint names `{text}`, which is no model. {TRUST_OR_NAME}")


_MODULE_CLASS = ("torch.nn.modules.module", "Module")


def _import_file(path: Path, text: str) -> ModuleType:
    """Import a file under a name of its own, so that two `model.py` never meet."""
    try:
        source = path.resolve()
        code = read_whole(source)
    except FileNotFoundError:
        raise SpecError(
            f"`{text}`: there is no file `{path}`. Relative paths start from the spec's folder (for a pruned "
            "file, from its own); name the model with `--spec` (`spec=`) if it has moved."
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SpecError(f"`{text}`: `{path}` cannot be read: {reason}.") from error
    digest = hashlib.sha256(str(source).encode() + code).hexdigest()[:12]
    name = f"prunecli_file_{source.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, source)
    assert found is not None, "the suffix is `.py`"
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # pickling and dataclasses look it up there
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(text, str(path), error) from error
    return module


def _import_module(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise SpecError(
                f"`{text}`: there is no module `{error.name}` here. Install it, or correct the name."
            ) from None
        raise _import_failed(text, name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(text, name, error) from error


def _import_failed(text: str, place: str, error: BaseException) -> SpecError:
    return SpecError(
        f"`{text}`: importing `{place}` failed with {type(error).__name__}: {first_line(error)}."
    )


def _folder(spec: ModelSpec, reference: Reference) -> Path | None:
    """Return the folder from which the named code imports its neighbours; None for installed libraries."""
    if reference.kind is FactoryKind.FILE:
        return spec.resolve(reference.place).resolve().parent
    return spec.base.resolve() if reference.kind is FactoryKind.MODULE else None


_folders_seen: set[Path] = set()
"""Folders from which neighbours may have been imported: `layers.py` of one must not answer for another's."""


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Let modules in `folder` be imported, before all others as in a script, until the block ends."""
    if folder is None:
        yield
        return
    _forget_namesakes(folder)
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        position = next((i for i, found in enumerate(sys.path) if found is entry), None)
        if position is not None:
            del sys.path[position]


def _forget_namesakes(folder: Path) -> None:
    """Drop modules that came from another spec's folder where this folder has one of the same name."""
    others = tuple(f"{other}{os.sep}" for other in _folders_seen - {folder})
    _folders_seen.add(folder)
    for name, module in list(sys.modules.items()):
        home = str(getattr(module, "__dict__", {}).get("__file__") or "")
        if not home.startswith(others):  # nearly all modules: they are installed
            continue
        top = name.partition(".")[0]
        is_neighbour = any(home.startswith((f"{other}{top}.py", f"{other}{top}{os.sep}")) for other in others)
        if is_neighbour and ((folder / f"{top}.py").is_file() or (folder / top).is_dir()):
            del sys.modules[name]


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return _shorten(lines[0].rstrip(".")) if lines else "no message"


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
