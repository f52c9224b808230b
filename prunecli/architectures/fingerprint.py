"""Names and shapes of an architecture -> digests that find it again, and where its arguments show.

One architecture takes one line of `catalogue.tsv`: the factory, three digests, and the dimensions that its
arguments set, such as `num_classes=1000:fc.bias.0,fc.weight.0`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

COUNTER = "num_batches_tracked"
"""The counter of a batch norm: old files lack it, and so does every fingerprint."""
_DIGITS = 12
_NOTHING = "-"
_PLACE = re.compile(r"(.+)\.(\d+)(?:\*(\d+))?(?:\+(\d+))?")


@dataclass(frozen=True)
class Place:
    """A dimension whose length an argument sets: length = factor x value + offset."""

    tensor: str
    axis: int
    factor: int = 1
    offset: int = 0

    def value(self, shapes: Shapes) -> int | None:
        """Return the argument's value in these shapes; None where no whole number explains the length."""
        value, rest = divmod(shapes[self.tensor][self.axis] - self.offset, self.factor)
        return value if rest == 0 and value > 0 else None

    def __str__(self) -> str:
        """Write `fc.weight.0`, `*4` behind it for a factor and `+4` for an offset."""
        factor = f"*{self.factor}" if self.factor != 1 else ""
        return f"{self.tensor}.{self.axis}{factor}" + (f"+{self.offset}" if self.offset else "")

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read what `str` wrote.

        >>> Place.parse("head.bbox.weight.0*4")
        Place(tensor='head.bbox.weight', axis=0, factor=4, offset=0)
        """
        found = _PLACE.fullmatch(text)
        assert found is not None, text
        return cls(found[1], int(found[2]), int(found[3] or 1), int(found[4] or 0))


@dataclass(frozen=True)
class Argument:
    """An argument that shows in shapes: what it is by default, and where it shows."""

    name: str
    default: int
    places: tuple[Place, ...]

    def value(self, shapes: Shapes) -> int | None:
        """Return the one value that explains all places; None where there is none."""
        values = {place.value(shapes) for place in self.places}
        return values.pop() if len(values) == 1 else None


@dataclass(frozen=True)
class Fingerprint:
    """What an architecture is known by."""

    factory: str
    names: str
    """Digest of the names of all tensors."""
    shapes: str
    """Digest of the names and shapes, but for the lengths that arguments set."""
    trunk: str | None
    """Digest of the names and shapes outside the classifier; None where there is none."""
    arguments: tuple[Argument, ...] = ()
    args: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the factory that this line was made with."""

    def to_line(self) -> str:
        """Return one line of the catalogue."""
        call = f"{self.factory}?{json.dumps(dict(self.args))}" if self.args else self.factory
        shown = (f"{a.name}={a.default}:{','.join(map(str, a.places))}" for a in self.arguments)
        return "\t".join((call, self.names, self.shapes, self.trunk or _NOTHING, ";".join(shown)))

    @classmethod
    def from_line(cls, line: str) -> Fingerprint:
        """Read one line of the catalogue."""
        call, names, shapes, trunk, arguments = line.split("\t")
        factory, _, args = call.partition("?")
        known = tuple(map(_argument, filter(None, arguments.split(";"))))
        return cls(
            factory, names, shapes, None if trunk == _NOTHING else trunk, known, json.loads(args or "{}")
        )


def take_fingerprint(
    factory: str, shapes: Shapes, arguments: Iterable[Argument] = (), args: Mapping[str, object] | None = None
) -> Fingerprint:
    """Return the fingerprint of an architecture."""
    arguments = tuple(arguments)
    heads = {
        place.tensor.partition(".")[0] for a in arguments if a.name == "num_classes" for place in a.places
    }
    return Fingerprint(
        factory,
        digest_of_names(shapes),
        digest_of_shapes(shapes, arguments),
        digest_without(shapes, heads) if heads else None,
        arguments,
        args or {},
    )


def digest_of_names(shapes: Shapes) -> str:
    """Return the digest of the names alone."""
    return _digest(sorted(_counted(shapes)))


def digest_of_shapes(shapes: Shapes, arguments: Iterable[Argument] = ()) -> str:
    """Return the digest of names and shapes, whatever the lengths are that these arguments set."""
    free = {(place.tensor, place.axis) for argument in arguments for place in argument.places}
    return _digest(
        f"{name} {['?' if (name, axis) in free else length for axis, length in enumerate(shapes[name])]}"
        for name in sorted(_counted(shapes))
    )


def digest_without(shapes: Shapes, heads: Collection[str]) -> str:
    """Return the digest of names and shapes outside these top-level modules."""
    return digest_of_shapes({name: shapes[name] for name in shapes if name.partition(".")[0] not in heads})


def _counted(shapes: Shapes) -> Iterable[str]:
    return (name for name in shapes if not name.endswith(COUNTER))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _argument(text: str) -> Argument:
    head, _, places = text.partition(":")
    name, _, default = head.partition("=")
    return Argument(name, int(default), tuple(map(Place.parse, places.split(","))))
