"""Methods + groups -> which method scores which group, where one falls back on another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prunecli.arguments import arguments_of
from prunecli.errors import ScoreError
from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.registry import Method, Noting
from prunecli.importance.scores import Scores

_SHOWN = 3

Refused = Mapping[str, str]
"""Name of a group -> why it cannot be scored, in words that follow the name."""


@dataclass(frozen=True, eq=False)
class Shares:
    """What each method scores."""

    methods: Mapping[str, Method]
    """The methods that have something to score; one that falls back scores only what it can."""
    order: tuple[str, ...]
    """The names of all groups."""
    refused: Mapping[str, Refused]
    """Method -> the groups that the fallback scores for it."""
    arguments: Mapping[str, Mapping[str, object]]
    """Method -> its arguments, for those that fall back."""
    fallback: str | None

    def joined(self, scores: Mapping[str, Scores], wanted: Iterable[str]) -> dict[str, Scores]:
        """Return the scores of the methods wanted: gaps are filled in by the fallback, and noted."""
        return {
            name: self._filled(name, scores[name], scores[self.fallback])
            if self.fallback is not None and name in self.refused
            else scores[name]
            for name in wanted
        }

    def _filled(self, name: str, own: Scores, other: Scores) -> Scores:
        refused = self.refused[name]
        note = (
            f"`{name}` cannot score {len(refused)} of {len(self.order)} groups ({some(refused)}): scored by "
            f"`{other.method}`. The numbers of two methods do not compare: rank within layers "
            "(`--scope layer`)."
        )
        about = own.about if own.about.samples else other.about  # whichever tells of samples, if any does
        notes = tuple(dict.fromkeys((*own.about.notes, *other.about.notes, note)))
        about = replace(
            about,
            method=name,
            arguments=self.arguments[name],
            notes=notes,
            fallbacks=dict.fromkeys(refused, other.method),
        )
        both = {**own.by_group, **{group: other.by_group[group] for group in refused}}
        return Scores(about, {group: both[group] for group in self.order})


def share_out(
    methods: Mapping[str, Method], wanted: Collection[str], groups: Sequence[Group], fallback: str | None
) -> Shares:
    """Decide which method scores which group.

    Args:
        methods: The methods wanted, and the fallback.
        wanted: The methods whose scores are asked for.
        groups: All groups.
        fallback: Who scores what one of the methods wanted refuses; None: nobody.

    Raises:
        ScoreError: A group is left that nobody can score.
    """
    if not groups:
        raise ScoreError("There is nothing to score: no group of the model can be cut (`prunecli inspect`).")
    order = tuple(group.name for group in groups)
    refused = {name: found for name in wanted if (found := _refused_by(methods[name], groups))}
    for name, found in refused.items():
        _check(name, found, groups, fallback, methods)
    shares = {name: methods[name] for name in wanted}
    if fallback is not None and refused:
        left = {group for found in refused.values() for group in found}
        parts = {name: _Part(methods[name], set(order) - set(found)) for name, found in refused.items()}
        shares = {fallback: _Part(methods[fallback], left), **shares, **parts}
    arguments = {name: arguments_of(methods[name]) for name in refused}
    return Shares(shares, order, refused, arguments, fallback)


def some(names: Collection[str]) -> str:
    """List a few names.

    >>> some(["a", "b", "c", "d", "e"])
    '`a`, `b`, `c` and 2 more'
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in list(names)[:_SHOWN]) + more


def _refused_by(method: Method, groups: Iterable[Group]) -> dict[str, str]:
    return {group.name: reason for group in groups if (reason := method.refuse(group))}


def _check(
    name: str, refused: Refused, groups: Sequence[Group], fallback: str | None, methods: Mapping[str, Method]
) -> None:
    """Raise if nobody scores what a method refuses, or the method itself would score nothing."""
    first, *others = refused
    reason = f"`{name}` cannot score `{first}`, which {refused[first]}"
    more = f" (and {len(others)} more: {some(others)})" if others else ""
    if fallback is None or fallback == name:
        raise ScoreError(
            f"{reason}{more}. Choose another method, or one that scores such groups with `--fallback`."
        )
    if len(refused) == len(groups):
        raise ScoreError(
            f"{reason}{more}: that is all there are. Choose `--method {fallback}`, without a `--fallback`."
        )
    left = _refused_by(methods[fallback], [group for group in groups if group.name in refused])
    for group, why in left.items():
        raise ScoreError(
            f"`{name}` cannot score `{group}`, which {refused[group]}; nor can the fallback `{fallback}`: "
            f"it {why}. Choose another `--fallback`."
        )


class _Part:
    """A method that scores some of the groups."""

    def __init__(self, method: Method, names: Collection[str]) -> None:
        self.method, self.names = method, names

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return what the method reads; nothing for other groups."""
        return self.method.members(group) if group.name in self.names else ()

    def refuse(self, group: Group) -> str | None:
        """Return what the method says."""
        return self.method.refuse(group)

    def observe(self, batch: Observed) -> State:
        """Show the method only its groups."""
        groups = tuple(group for group in batch.groups if group.name in self.names)
        return self.method.observe(replace(batch, groups=groups))

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return what the method makes of it."""
        return self.method.finish(total, batches)

    def notes(self, total: State) -> tuple[str, ...]:
        """Return what the method says of its own scores."""
        return self.method.notes(total) if isinstance(self.method, Noting) else ()
