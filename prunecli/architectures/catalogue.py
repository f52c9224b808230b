"""The catalogue that ships with prunecli -> fingerprints, by the names of their tensors.

`python -m benchmarks.catalogue` writes it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path

from prunecli.architectures.fingerprint import Fingerprint

PATH = Path(__file__).with_name("catalogue.tsv")
VERSIONS = "# fingerprints of"
"""How the first line begins, which names the versions of the libraries."""


class Catalogue:
    """All fingerprints, found by one of their digests. Lines are taken apart when they are asked for."""

    def __init__(self, text: str) -> None:
        first, *lines = text.splitlines()
        self.versions = first.removeprefix(VERSIONS).strip()
        self._by_names: dict[str, list[str]] = defaultdict(list)
        self._by_trunk: dict[str, list[str]] = defaultdict(list)
        for line in lines:
            _, names, _, trunk, _ = line.split("\t")
            self._by_names[names].append(line)
            self._by_trunk[trunk].append(line)

    def with_names(self, digest: str) -> list[Fingerprint]:
        """Return those whose tensors have these names."""
        return list(map(Fingerprint.from_line, self._by_names.get(digest, ())))

    def with_trunk(self, digest: str) -> list[Fingerprint]:
        """Return those that are the same outside their classifier."""
        return list(map(Fingerprint.from_line, self._by_trunk.get(digest, ())))


@cache
def read_catalogue() -> Catalogue:
    """Return the catalogue that ships with prunecli."""
    return Catalogue(PATH.read_text(encoding="utf-8"))
