"""What is typed so far -> what the shell may complete it to, without importing torch or any model.

Names of methods, schedules and architectures are read from the sources that declare them, as text: what is
installed is what is offered. Where nothing is returned, shells complete names of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import TypeAlias

Completer: TypeAlias = Callable[[str], list[tuple[str, str]]]
"""What is typed of a value so far -> whole values, and what each is."""

VARIABLE, IN_BASH = "_PRUNECLI_COMPLETE", "complete_bash"
"""What shells ask by, and what bash asks."""
_ARCHITECTURES = {"torchvision": "torchvision/models", "timm": "timm/models"}
_DECLARED = re.compile(
    r"^@(?:method|schedule)\(\s*\"([\w-]+)\".*?^class .*?\"{3}(.*?)$", re.MULTILINE | re.DOTALL
)
_REGISTERED = re.compile(
    r"^@register_model(?:\((?:name=\"(\w+)\")?\))?\n.*?^def (\w+)", re.MULTILINE | re.DOTALL
)
_LONGEST = 60
"""Characters of what is said of a name; longer lines would be broken, and taken for two names."""


def method_names(typed: str) -> list[tuple[str, str]]:
    """Complete the name of a method, or of the last of several with commas between."""
    return _last_of_list(typed, (*_declared("importance"), *_declared("weights")))


def schedule_names(typed: str) -> list[tuple[str, str]]:
    """Complete the name of a schedule."""
    return _starting(typed, _declared("training"))


def preset_names(typed: str) -> list[tuple[str, str]]:
    """Complete the name of a preset."""
    from prunecli.pipeline.presets import PRESETS

    return _starting(typed, ((name, "") for name in PRESETS))


def specs(typed: str) -> list[tuple[str, str]]:
    """Complete a spec: an architecture behind `torchvision:` or `timm:`, or a TOML file.

    Whole names are returned at once: behind a lone prefix, shells would put a space.
    """
    found = _starting(typed, (("auto", "the model that has the same tensors"), *_files(typed, ".toml")))
    for package in _ARCHITECTURES:
        if typed and f"{package}:".startswith(typed[: len(package) + 1]):
            found += _starting(typed, ((f"{package}:{name}", "") for name in _architectures(package)))
    return found


def files(*suffixes: str) -> Completer:
    """Complete names of files that end so; where there is none, shells offer all files."""

    def complete(typed: str) -> list[tuple[str, str]]:
        return _starting(typed, (each for suffix in suffixes for each in _files(typed, suffix)))

    return complete


def choices(*values: str) -> Completer:
    """Complete one of a few values."""

    def complete(typed: str) -> list[tuple[str, str]]:
        return _starting(typed, ((value, "") for value in values))

    return complete


def mend_words(environment: MutableMapping[str, str]) -> bool:
    """Put words together again that bash took apart at colons: `torchvision`, `:`, `resnet` are one value.

    And leave the `=` out that it made a word of in `--spec=torchvision:resnet`.

    Returns:
        Whether the word being typed is such a value. Bash replaces only what stands behind its last colon,
        but all that stands behind a quote.
    """
    words, at = environment["COMP_WORDS"].split("\n"), int(environment["COMP_CWORD"])
    words = words[: at + 1]
    mended: list[str] = []
    for i, word in enumerate(words):
        if word == "=" and mended[-1:] and mended[-1].startswith("--"):
            mended += [""] * (i == len(words) - 1)
        elif mended and word and (word.startswith(":") or mended[-1].endswith(":")):
            mended[-1] += word
        else:
            mended.append(word)
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(mended), str(len(mended) - 1)
    return ":" in mended[-1] and not mended[-1].startswith(("'", '"'))


def behind_colon(text: str) -> str:
    """Return lines without what stands before their last colon.

    >>> behind_colon("timm:resnet10t")
    'resnet10t'
    """
    return "\n".join(line.rpartition(":")[2] for line in text.splitlines())


def _starting(typed: str, known: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list({name: (name, text) for name, text in known if name.startswith(typed)}.values())


def _last_of_list(typed: str, known: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    first, comma, last = typed.rpartition(",")
    return [(f"{first}{comma}{name}", text) for name, text in _starting(last, known)]


def _declared(package: str) -> Iterator[tuple[str, str]]:
    """Yield what files of a package of ours declare by `@method` or `@schedule`: its name and first line."""
    for path in sorted((Path(__file__).parents[1] / package).glob("*.py")):
        for name, text in _DECLARED.findall(path.read_text(encoding="utf-8")):
            yield name, shorten(text.rstrip('".').replace("[", "("), _LONGEST, placeholder=" ...")


def _architectures(package: str) -> Iterator[str]:
    """Yield the names of the models that files of torchvision or timm register."""
    found = _folder(package)
    paths = sorted(found.rglob("*.py")) if found else []
    for path in paths:
        for names in _REGISTERED.findall(path.read_text(encoding="utf-8", errors="replace")):
            yield names[0] or names[1]


def _folder(package: str) -> Path | None:
    """Return where the models of a package are, which is not imported; None if it is not installed."""
    found = find_spec(package)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parents[1] / _ARCHITECTURES[package]


def _files(typed: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Yield files that end so in the folder that is typed, and in the folders there."""
    folder, slash, _ = typed.rpartition("/")
    here = Path(f"{folder}{slash}" or ".").expanduser()
    for pattern in (f"*{suffix}", f"*/*{suffix}"):
        for path in sorted(here.glob(pattern)):
            yield f"{folder}{slash}{path.relative_to(here).as_posix()}", ""
