"""What one call of a module said about atoms, and the same said of another call that is just like it.

A trace only ever adds statements, and what it adds depends on the code that runs and on how the labels it
is given lie to each other, not on the atoms in them. So where both are the same, atoms and names are all
that differ:

    given     the labels of the module's tensors and of its inputs      theirs, one for one
    fresh     atoms that the call made                                  as many new ones
    names     of modules and tensors inside                             with the other module's name in front
    sites     gate sites that an input carries                          those that the other input carries
    shared    modules inside of both, by a name from outside            the same
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from prunecli.graph.calls import Counts
from prunecli.graph.constraints import FROZEN_ATOM, Atoms, Constraints, Grid, Label, Labels, Reason
from prunecli.graph.findings import Contraction, Findings, Flow, Path, Tag, Watched, label_arrays
from prunecli.graph.structure import CallKey

Sites = frozenset[str]


@dataclass(frozen=True, eq=False)
class Given:
    """What a call was given: the module's name, different labels, and different sets of gate sites."""

    module: str
    labels: Sequence[Atoms]
    sites: Sequence[Sites]
    shared: frozenset[str] = frozenset()
    """Modules inside that go by a name from outside, where they are as well."""

    def owns(self, name: str) -> bool:
        """Return whether this is the name of the module, or of something inside it."""
        return name == self.module or name.startswith(f"{self.module}.")


@dataclass(frozen=True, eq=False)
class Said:
    """What was said while a call lasted; atoms from `first` on are new."""

    first: int
    constraints: Constraints
    findings: Findings
    counts: Counts


class CannotRepeat(Exception):
    """A call said something of what it was not given."""


class Recording:
    """One call, to be said again.

    Args:
        given: what it was given.
        said: what it said.
        tags: what its results were tagged with.

    Raises:
        CannotRepeat: it is about more than what it was given.
    """

    def __init__(self, given: Given, said: Said, tags: Sequence[Tag]) -> None:
        self.given, self.said, self.tags = given, said, tags
        for name in _names(said, tags):
            if not given.owns(name) and name not in given.shared:
                raise CannotRepeat(name)
        self._places = self._find_places()
        sets = (frozenset(said.findings.gated), *(tag.flow.open_sites for tag in tags))
        self._sites = {each: self._find_sites(each) for each in sets}

    def repeat(self, given: Given, first: int) -> tuple[Said, list[Tag]]:
        """Say the same of what another call was given, with new atoms from `first` on; tag its results."""
        words = _Words(self, given, first)
        said = self.said
        counts = Counter({(words.name(name), function): n for (name, function), n in said.counts.items()})
        again = Said(first, words.constraints(said.constraints), words.findings(said.findings), counts)
        return again, [words.tag(tag) for tag in self.tags]

    def atoms_of(self, given: Given, first: int) -> dict[int, Atoms]:
        """Return for every label said, by identity, what it is for another call."""
        fresh = np.arange(first, first + self.said.constraints.count - self.said.first)
        known = np.concatenate([_NOTHING, *given.labels, fresh])
        atoms = {id(ours): theirs for ours, theirs in zip(self.given.labels, given.labels, strict=True)}
        for label, places in self._places.items():
            atoms[label] = known[places]
        return atoms

    def sites_of(self, sites: Iterable[str], given: Given) -> Sites:
        """Return what a set of gate sites is for another call."""
        own, carried = self._sites[frozenset(sites)]
        return frozenset(given.module + name for name in own).union(*(given.sites[each] for each in carried))

    def _find_places(self) -> dict[int, Atoms]:
        """Return where the atoms of each label are among those given and the fresh ones.

        Raises:
            CannotRepeat: some are neither.
        """
        known = np.concatenate([_NOTHING, *self.given.labels])
        order = np.argsort(known, kind="stable")
        ordered = known[order]
        own = {id(label) for label in self.given.labels}
        places = {}
        for atoms in _labels(self.said, self.tags):
            if id(atoms) in own or id(atoms) in places:
                continue
            at = np.minimum(np.searchsorted(ordered, atoms), known.size - 1)
            is_fresh = atoms >= self.said.first
            if not (is_fresh | (ordered[at] == atoms)).all():
                raise CannotRepeat(self.given.module)
            places[id(atoms)] = np.where(is_fresh, atoms - self.said.first + known.size, order[at])
        return places

    def _find_sites(self, sites: Sites) -> tuple[list[str], list[int]]:
        """Return the module's own sites among these, without its name, and which of the sets given are here.

        Raises:
            CannotRepeat: some are neither.
        """
        carried = [place for place, each in enumerate(self.given.sites) if each <= sites]
        rest = sites.difference(*(self.given.sites[place] for place in carried))
        if not all(map(self.given.owns, rest)):
            raise CannotRepeat(self.given.module)
        return [name[len(self.given.module) :] for name in rest], carried


_NOTHING: Final = np.array([FROZEN_ATOM])


class _Words:
    """What one call said, in terms of another."""

    def __init__(self, recording: Recording, given: Given, first: int) -> None:
        self._recording, self._given, self._first = recording, given, first
        self._module = len(recording.given.module)
        self._atoms = recording.atoms_of(given, first)

    def name(self, name: str) -> str:
        return name if name in self._given.shared else self._given.module + name[self._module :]

    def atoms(self, atoms: Atoms) -> Atoms:
        return self._atoms[id(atoms)]

    def labels(self, labels: Iterable[Label]) -> Labels:
        return tuple(self._atoms[id(each)] if isinstance(each, np.ndarray) else each for each in labels)

    def tag(self, tag: Tag) -> Tag:
        parameters = frozenset(map(self.name, tag.flow.parameters))
        sites = self._recording.sites_of(tag.flow.open_sites, self._given)
        picked = None if tag.picked_from is None else self.atoms(tag.picked_from)
        return Tag(self.labels(tag.labels), Flow(tag.flow.from_data, parameters, sites), picked)

    def constraints(self, said: Constraints) -> Constraints:
        atoms = self.atoms
        return Constraints(
            count=self._first + said.count - self._recording.said.first,
            ties=[(atoms(one), atoms(other)) for one, other in said.ties],
            grids=[Grid(atoms(each.cells), atoms(each.rows), atoms(each.columns)) for each in said.grids],
            freezes=[(atoms(each), self._reason(reason)) for each, reason in said.freezes],
            statistics=[atoms(each) for each in said.statistics],
        )

    def findings(self, said: Findings) -> Findings:
        name, atoms = self.name, self.atoms
        return Findings(
            roles={name(tensor): role for tensor, role in said.roles.items()},
            used={name(tensor): name(module) for tensor, module in said.used.items()},
            gated=set(self._recording.sites_of(said.gated, self._given)),
            consumed=[atoms(each) for each in said.consumed],
            produced=[atoms(each) for each in said.produced],
            contractions=[
                Contraction(name(each.module), each.op, each.coefficient, tuple(map(atoms, each.labels)))
                for each in said.contractions
            ],
            watched=[self._watched(each) for each in said.watched],
            sizes={
                name(module): {id(atoms(label)): (atoms(label), given) for label, given in seen.values()}
                for module, seen in said.sizes.items()
            },
            channels={
                name(module): (atoms(ins), atoms(outs), atoms(groups))
                for module, (ins, outs, groups) in said.channels.items()
            },
            unknown={op: name(module) for op, module in said.unknown.items()},
            path={
                name(module): Path(list(each.operations), list(each.scalars), list(map(atoms, each.picks)))
                for module, each in said.path.items()
            },
            is_sized=said.is_sized,
        )

    def _reason(self, said: Reason) -> Reason:
        return Reason(said.text, self.name(said.module), said.op, said.expected)

    def _watched(self, said: Watched) -> Watched:
        call = CallKey(self.name(said.call.module), said.call.function, said.call.nth)
        tensors = tuple(map(self.name, said.tensors))
        return Watched(call, said.kind, said.operand, self.labels(said.labels), tensors)


def _labels(said: Said, tags: Iterable[Tag]) -> Iterator[Atoms]:
    """Yield every label that was said."""
    constraints, found = said.constraints, said.findings
    for pair in constraints.ties:
        yield from pair
    for grid in constraints.grids:
        yield from (grid.cells, grid.rows, grid.columns)
    yield from (atoms for atoms, _ in constraints.freezes)
    yield from (*constraints.statistics, *found.consumed, *found.produced)
    for contraction in found.contractions:
        yield from contraction.labels
    for labels in (*(each.labels for each in found.watched), *(tag.labels for tag in tags)):
        yield from label_arrays(labels)
    yield from (tag.picked_from for tag in tags if tag.picked_from is not None)
    for seen in found.sizes.values():
        yield from (label for label, _ in seen.values())
    for channels in found.channels.values():
        yield from channels
    for path in found.path.values():
        yield from path.picks


def _names(said: Said, tags: Iterable[Tag]) -> Iterator[str]:
    """Yield every name of a module or a tensor that was said, but for those of gate sites."""
    found = said.findings
    yield from (reason.module for _, reason in said.constraints.freezes)
    yield from (*found.roles, *found.used, *found.used.values(), *found.unknown.values())
    yield from (each.module for each in found.contractions)
    for each in found.watched:
        yield from (each.call.module, *each.tensors)
    yield from (*found.sizes, *found.channels, *found.path, *(name for name, _ in said.counts))
    for tag in tags:
        yield from tag.flow.parameters
