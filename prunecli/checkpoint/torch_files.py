"""Files of `torch.save`, old and new -> what they hold, without running anything that they name."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from encodings import normalize_encoding
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import safe_globals

from prunecli.checkpoint.names import listed, printable
from prunecli.checkpoint.sniff import MAX_INFLATION, Format
from prunecli.checkpoint.stand_ins import STAND_INS, bare
from prunecli.errors import CheckpointError
from prunecli.memory import at_most, is_for_want_of_memory

OLDEST_TORCH = (2, 10)
"""Older versions have holes in `weights_only` loading (CVE-2025-32434, CVE-2026-24747)."""
_ROOM = 1 << 29
"""What any file may take besides, in bytes."""
_BYTES_TO_BYTES = (
    "hex",
    "uu",
    "base64",
    "base_64",
    "quopri",
    "quoted_printable",
    "quotedprintable",
    "bz2",
    "zlib",
)


def read_torch(path: Path, format: Format, *, allow_pickle: bool = False) -> Any:
    """Return the object in the file.

    Args:
        path: the file.
        format: TORCH, TORCH_LEGACY or PICKLE.
        allow_pickle: if the file holds more than plain values, run the code it names. Only for trusted files.

    Raises:
        CheckpointError: the file is damaged, or loading it would run code.
    """
    check_torch_version()
    if format is Format.PICKLE:
        return _read_pickle(path, allow_pickle)
    _check_codecs(path, format)
    mmap = format is Format.TORCH and _is_stored(path)
    most = _ROOM + MAX_INFLATION * path.stat().st_size
    try:
        with _quietly(), safe_globals(list(STAND_INS)), at_most(most):
            return bare(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    except Exception as error:  # a hostile or damaged pickle may raise anything
        code = find_globals(path, format) - _known_globals()
        if is_for_want_of_memory(error):
            raise CheckpointError(
                f"`{path}` would take more memory than there is, or than {most:,} bytes, which no checkpoint "
                "of its size does: a bomb? It was not opened."
            ) from error
        if not code:
            raise _damaged(path, error) from error
        if not allow_pickle:
            raise _needs_code(path, code) from None
    return _run_pickle(path, lambda: torch.load(path, map_location="cpu", weights_only=False, mmap=mmap))


def check_torch_version() -> None:
    """Raise a CheckpointError if this PyTorch is too old to read untrusted files."""
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise CheckpointError(
            f"PyTorch {torch.__version__} cannot read untrusted checkpoints safely. Install {wanted} or "
            "newer."
        )


def find_globals(path: Path, format: Format) -> set[str]:
    """Return the names of all code that the pickle mentions, reading it as data."""
    found: set[str] = set()
    texts: list[str] = []  # the two before a STACK_GLOBAL are its module and name
    try:
        opcodes = list(_opcodes(path, format))
    except CheckpointError:  # which is said of the file as a whole
        return found
    for name, argument in opcodes:
        if name in ("GLOBAL", "INST"):
            found.add(str(argument).replace(" ", ".", 1))
        elif name == "STACK_GLOBAL" and len(texts) > 1:
            found.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def _check_codecs(path: Path, format: Format) -> None:
    """Refuse codecs from bytes to bytes: `hex` of `hex` of `hex`... makes a terabyte of a hundred bytes."""
    found = list(_opcodes(path, format, naming=b"_codecs"))
    texts = (str(argument) for name, argument in found if isinstance(argument, str) and len(argument) < 40)
    if any(normalize_encoding(text).lower().removesuffix("_codec") in _BYTES_TO_BYTES for text in texts):
        raise CheckpointError(
            f"`{path}` encodes bytes as other bytes, which no checkpoint does: a bomb? It was not opened."
        )


def _opcodes(path: Path, format: Format, naming: bytes = b"") -> Iterator[tuple[str, Any]]:
    """Yield opcode and argument of the pickles in a file, as data; nothing where a word is not in a zip.

    PyTorch finds members of a zip by names in any case, and reads some that Python's reader refuses.

    Raises:
        CheckpointError: a pickle in it cannot be read, so that nobody knows what it would do.
    """
    try:
        if format is Format.TORCH:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if member.filename.lower().endswith("data.pkl"):
                        content = archive.read(member)
                        yield from _opcodes_of(io.BytesIO(content)) if naming in content else ()
            return
        with path.open("rb") as file:
            # A legacy file is a row of pickles: magic number, version, system, then the object.
            for _ in range(4 if format is Format.TORCH_LEGACY else 1):
                yield from _opcodes_of(file)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _opcodes_of(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the opcodes of one pickle."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            yield opcode.name, argument
    except Exception:  # what is damaged does nothing further
        return


def _known_globals() -> set[str]:
    """Return the names that `weights_only` loading accepts here."""
    from torch._weights_only_unpickler import _get_allowed_globals

    return set(_get_allowed_globals()) | {name for _, name in STAND_INS}


def _needs_code(path: Path, code: set[str]) -> CheckpointError:
    is_module = any(name.startswith("torch.nn.modules.") for name in code)
    own = sorted(code, key=lambda name: (name.startswith("torch."), name))
    what = "holds a whole pickled model" if is_module else "holds more than parameters"
    return CheckpointError(
        f"`{path}` {what}: reading it would run code of {listed(own)}. It was not opened. Save it again "
        "where it was made, as `torch.save(model.state_dict(), PATH)`, or pass `--allow-pickle` if you "
        "trust it."
    )


def _read_pickle(path: Path, allow_pickle: bool) -> Any:
    if not allow_pickle:
        raise CheckpointError(
            f"`{path}` is a plain pickle, not written by `torch.save`: reading it could run code. Save it "
            "again as `torch.save(model.state_dict(), PATH)`, or pass `--allow-pickle` if you trust it."
        )

    def load() -> Any:
        with path.open("rb") as file:
            return pickle.load(file)

    return _run_pickle(path, load)


def _run_pickle(path: Path, load: Any) -> Any:
    """Unpickle with code, which the user allowed."""
    try:
        with _quietly():
            return load()
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"`{path}` needs code that is not here: {printable(str(error))}. Run prunecli where it can be "
            "imported (set PYTHONPATH), or save the `state_dict()` instead."
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _is_stored(path: Path) -> bool:
    """Say whether the zip is uncompressed, as `torch.save` writes it, so that it can be mapped."""
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _damaged(path: Path, error: Exception) -> CheckpointError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    operand = re.search(r"Unsupported operand \d+", str(error))
    if operand is not None:
        return CheckpointError(
            f"`{path}` uses a pickle protocol that cannot be read safely ({operand[0]}). "
            "Save it again with `torch.save(..., pickle_protocol=2)`, the default."
        )
    return CheckpointError(
        f"`{path}` is damaged ({type(error).__name__}: {printable(lines[-1])}). Was it copied or downloaded "
        "to the end?"
    )


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # about old storage classes and protocols, which the user cannot change
        warnings.simplefilter("ignore")
        yield
