"""Counts how many outputs of the ReLUs of each group are not zero, while a net runs anyway (METHODS 5)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.errors import ScoreError
from prunecli.graph.calls import CallWatch, following
from prunecli.graph.structure import CallKey, Group, Site, SiteKind, Structure
from prunecli.peers import ALONE, Peers
from prunecli.strict_json import Json


@dataclass
class Counts:
    """Whole numbers, by group: outputs that are not zero, and outputs."""

    positive: dict[str, Tensor] = field(default_factory=dict)
    """int64, on the device that the net runs on, so that nothing waits for it."""
    all: dict[str, int] = field(default_factory=dict)

    def add(self, group: str, positive: Tensor, count: int) -> None:
        """Count more outputs of a group."""
        before = self.positive.get(group)
        self.positive[group] = positive if before is None else before.to(positive.device) + positive
        self.all[group] = self.all.get(group, 0) + count

    def of(self, group: str) -> tuple[int, int]:
        """Return both numbers of a group; zeros where it was never met."""
        return int(self.positive[group]) if group in self.positive else 0, self.all.get(group, 0)

    def density(self, group: str) -> float | None:
        """Return the share that is not zero; None where nothing was met."""
        positive, count = self.of(group)
        return positive / count if count else None

    @property
    def pooled(self) -> float:
        """The share over all groups together: those with many outputs count for more."""
        count = sum(self.all.values())
        return sum(int(each) for each in self.positive.values()) / count if count else 0.0

    @property
    def mean(self) -> float:
        """The mean of the shares of the groups."""
        shares = [self.density(group) for group in self.all]
        return sum(share for share in shares if share is not None) / len(shares) if shares else 0.0

    def part(self, group: str, width: int) -> Fraction:
        """Return density times width, exactly."""
        positive, count = self.of(group)
        return Fraction(positive * width, count)

    def plain(self) -> dict[str, Json]:
        """Return what is to be written down."""
        return {group: list(self.of(group)) for group in self.all}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Counts:
        """Go on from what `plain` gave."""
        positive = {group: torch.tensor(pair[0], dtype=torch.int64) for group, pair in plain.items()}
        return cls(positive, {group: pair[1] for group, pair in plain.items()})


@contextmanager
def together(counts: Counts, groups: Collection[str], peers: Peers) -> Iterator[Counts]:
    """Lend counts to add to, and add what all processes counted meanwhile to `counts`.

    Raises:
        PeerError: another process is gone.
    """
    if not peers.are_several:
        yield counts
        return
    own = Counts()
    yield own
    sums = peers.summed([float(each) for name in groups for each in own.of(name)])
    for name, positive, count in zip(groups, sums[::2], sums[1::2], strict=True):
        counts.add(name, torch.tensor(int(positive)), int(count))


def rectified(group: Group) -> tuple[Site, ...]:
    """Return where a ReLU has just set to zero what is negative of the units."""
    return tuple(site for site in group.sites if site.kind is SiteKind.RECTIFIED)


@contextmanager
def counting(
    model: nn.Module,
    structure: Structure,
    groups: Collection[str],
    counts: Counts,
    peers: Peers = ALONE,
) -> Iterator[None]:
    """Count in every forward pass meanwhile; one comparison per output, and nothing is changed.

    Args:
        model: which runs.
        structure: that of the model as it is now.
        groups: the names of those that are counted.
        counts: what is added to.
        peers: the processes that count together, each on what it runs.

    Raises:
        ScoreError: the forward pass takes another path than the trace did.
        PeerError: another process is gone.
    """
    places: dict[CallKey, list[_Place]] = {}
    for group in structure.groups:
        if group.name in groups:
            for site in rectified(group):
                places.setdefault(site.call, []).append(_Place(group.name, site))
    with (
        together(counts, groups, peers) as own,
        following(model) as modules,
        _Count(modules, places, own),
    ):
        yield


@dataclass(frozen=True, eq=False)
class _Place:
    """A tensor in which units of a group lie."""

    group: str
    site: Site

    @cached_property
    def ours(self) -> Tensor | None:
        """Which positions belong to the group; None where all do."""
        positions = np.unique(self.site.positions)
        return torch.from_numpy(positions) if len(positions) < self.site.length else None


class _Count(CallWatch):
    """Counts what comes out of the ReLUs."""

    def __init__(self, modules: Any, places: Mapping[CallKey, list[_Place]], counts: Counts) -> None:
        super().__init__(modules)
        self.places, self.counts = places, counts

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        places = self.places.get(key)
        if places is not None:
            for place in places:
                self._count(place, result)
        return result

    def _count(self, place: _Place, result: Any) -> None:
        site, key = place.site, place.site.call
        is_tensor = isinstance(result, Tensor)
        if not is_tensor or result.dim() < -site.dim or result.shape[site.dim] != site.length:
            found = list(result.shape) if is_tensor else type(result).__name__
            raise ScoreError(
                f"`{key.function}` in `{key.module or 'the model'}` puts out {found} while training; the "
                f"trace has {site.length} positions along dimension {site.dim}, units of `{place.group}`. "
                f"Forward takes another path on real data: leave the layer alone, `--ignore {place.group}`."
            )
        outputs = result.detach()
        if place.ours is not None:
            outputs = outputs.index_select(site.dim, place.ours.to(outputs.device))
        self.counts.add(place.group, torch.count_nonzero(outputs > 0), outputs.numel())
