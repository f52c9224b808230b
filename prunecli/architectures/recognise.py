"""Names and shapes of the tensors in a checkpoint -> the architectures that have them, or nearly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prunecli.architectures.catalogue import Catalogue, read_catalogue
from prunecli.architectures.fingerprint import (
    Fingerprint,
    Shapes,
    digest_of_names,
    digest_of_shapes,
    digest_without,
)
from prunecli.checkpoint.spellings import spellings

_PREFERRED = "torchvision:"
_MANY = 40
"""Top-level modules of a checkpoint beyond which they are not looked at one by one."""


@dataclass(frozen=True)
class Match:
    """An architecture that has exactly the names and shapes of a checkpoint."""

    factory: str
    args: Mapping[str, object] = field(default_factory=dict)
    """Where they are not the factory's defaults."""
    prefix: str = ""
    """What all names in the checkpoint begin with."""

    @property
    def options(self) -> str:
        """The options that name it."""
        args = (f" --spec-arg {name}={json.dumps(value)}" for name, value in self.args.items())
        return f"--spec {self.factory}{''.join(args)}"

    @property
    def text(self) -> str:
        """What it is, in words."""
        args = ", ".join(f"{name}={json.dumps(value)}" for name, value in self.args.items())
        return f"{self.factory} with {args}" if args else self.factory


@dataclass(frozen=True)
class Near:
    """Architectures that a checkpoint resembles, and how it differs from them."""

    factories: tuple[str, ...]
    difference: str


@dataclass(frozen=True)
class Recognised:
    """What the tensors of a checkpoint look like."""

    matches: tuple[Match, ...] = ()
    """Those with the same names and shapes, torchvision's first."""
    near: tuple[Near, ...] = ()
    """Only where there is no match."""

    @property
    def choice(self) -> Match | None:
        """The one to take: the only one of torchvision, or else the only one; None where none is."""
        ours = [match for match in self.matches if match.factory.startswith(_PREFERRED)] or self.matches
        return ours[0] if len(ours) == 1 else None


def recognise(shapes: Shapes, catalogue: Catalogue | None = None) -> Recognised:
    """Say which architectures of torchvision and timm have tensors of these names and shapes.

    Prefixes that all names share are cut, and batch counters may be missing, as when a checkpoint is loaded.

    Args:
        shapes: the shape of each tensor, by name.
        catalogue: what is known; by default the one that ships with prunecli.
    """
    known = catalogue or read_catalogue()
    near: list[Near] = []
    for prefix, spelt in spellings(shapes):
        namesakes = known.with_names(digest_of_names(spelt))
        matches = tuple(match for each in namesakes if (match := _match(each, spelt, prefix)))
        if matches:
            return Recognised(tuple(sorted(matches, key=_order)))
        if namesakes:
            near.append(Near(_factories(namesakes), "the same names, but other shapes"))
        near += [*_like_in_the_trunk(known, spelt), *_like_in_a_part(known, spelt)]
    return Recognised(near=tuple(dict.fromkeys(near)))


def _match(known: Fingerprint, shapes: Shapes, prefix: str) -> Match | None:
    """Return the match, with the arguments that the shapes imply, if all shapes agree."""
    places = [place for argument in known.arguments for place in argument.places]
    if any(place.axis >= len(shapes.get(place.tensor, ())) for place in places):
        return None  # or names that hold newlines, and so have the digest of several
    if digest_of_shapes(shapes, known.arguments) != known.shapes:
        return None
    args = dict(known.args)
    for argument in known.arguments:
        value = argument.value(shapes)
        if value is None:
            return None
        if value != argument.default:
            args[argument.name] = value
    return Match(known.factory, args, prefix)


def _like_in_the_trunk(known: Catalogue, shapes: Shapes) -> list[Near]:
    """Return what differs in one top-level module alone: a classifier that was replaced, or taken off."""
    near = []
    if found := known.with_trunk(digest_without(shapes, ())):
        near.append(Near(_factories(found), "all but the classifier, which is not there"))
    for part in _parts(shapes):
        if found := known.with_trunk(digest_without(shapes, (part,))):
            near.append(Near(_factories(found), f"all but `{part}`, which is another"))
    return near


def _like_in_a_part(known: Catalogue, shapes: Shapes) -> list[Near]:
    """Return what a top-level module is by itself: the backbone of a larger network."""
    near = []
    for part in _parts(shapes):
        inside = {name[len(part) + 1 :]: shapes[name] for name in shapes if name.startswith(f"{part}.")}
        found = [each for each in known.with_names(digest_of_names(inside)) if _match(each, inside, "")]
        if found and len(inside) < len(shapes):
            near.append(Near(_factories(found), f"the tensors under `{part}` (see `--key`)"))
    return near


def _parts(shapes: Shapes) -> list[str]:
    """Return the names of the top-level modules, if they are not too many."""
    parts = list(dict.fromkeys(name.partition(".")[0] for name in shapes))
    return parts if len(parts) <= _MANY else []


def _factories(found: Iterable[Fingerprint]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.factory for each in sorted(found, key=_order)))


def _order(item: Match | Fingerprint) -> tuple[bool, str]:
    return not item.factory.startswith(_PREFERRED), item.factory
