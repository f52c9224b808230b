"""Which groups live inside one block of a model, and which of them are alike in blocks that are alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from prunecli.graph.build import Draft
from prunecli.graph.constraints import Atoms
from prunecli.graph.structure import Group
from prunecli.graph.trace import Trace


def alike_places(trace: Trace, draft: Draft) -> list[int]:
    """Return for each group the place of one like it that stands for it: its own, for most.

    Two groups are alike when they have the same name and width inside two blocks that are alike, and
    nothing outside of these blocks ever meets their positions: they have no way to get mixed up. But code
    may still compare the sizes of blocks, or hand them on. So two groups stand for all that are alike, each
    for those of every other block, and the last block is never with the first.
    """
    groups = draft.structure.groups
    homes = _Homes(trace.blocks)
    found: list[set[str]] = [homes.of_members(trace, group) for group in groups]
    for place, home in _seen(trace, draft, homes):
        found[place].add(home)
    turns = _turns(trace.blocks)
    first: dict[tuple[int, str, int, bool], int] = {}
    places = []
    for place, (group, seen_in) in enumerate(zip(groups, found, strict=True)):
        home = next(iter(seen_in)) if len(seen_in) == 1 else ""
        if home:
            inside = group.name[len(home) :]
            places.append(first.setdefault((trace.blocks[home], inside, group.width, turns[home]), place))
        else:
            places.append(place)
    return places


def _turns(blocks: Mapping[str, int]) -> dict[str, bool]:
    """Return to which of two halves of the blocks of its kind each one belongs.

    >>> list(_turns({"a": 0, "b": 0, "c": 0, "d": 1}).values())
    [False, True, True, False]
    """
    kinds: dict[int, list[str]] = {}
    for name, kind in blocks.items():
        kinds.setdefault(kind, []).append(name)
    turns = {name: bool(place % 2) for names in kinds.values() for place, name in enumerate(names)}
    return turns | {names[-1]: True for names in kinds.values() if len(names) > 1}


class _Homes:
    """The blocks that modules belong to; the empty name for those outside of all."""

    def __init__(self, blocks: Mapping[str, int]) -> None:
        self._blocks = blocks
        self._of: dict[str, str] = {}

    def of(self, module: str) -> str:
        found = self._of.get(module)
        if found is None:
            name = module
            while name and name not in self._blocks:
                name = name.rpartition(".")[0]
            found = self._of[module] = name
        return found

    def of_members(self, trace: Trace, group: Group) -> set[str]:
        """Return where the tensors of a group are, and where they are used."""
        tensors = {member.tensor for member in group.members}
        used = trace.findings.used
        return {self.of(each) for each in tensors} | {self.of(used.get(each, "")) for each in tensors}


def _seen(trace: Trace, draft: Draft, homes: _Homes) -> Iterator[tuple[int, str]]:
    """Yield places of groups, and homes of modules in which their positions came up, each pair once."""
    labels: dict[tuple[str, int], Atoms] = {}
    for module, seen in trace.findings.sizes.items():
        home = homes.of(module)
        for label, _ in seen.values():
            labels[home, id(label)] = label
    if not labels:
        return
    names = list(dict.fromkeys(home for home, _ in labels))
    number = {home: place for place, home in enumerate(names)}
    lengths = [label.size for label in labels.values()]
    at = np.repeat([number[home] for home, _ in labels], lengths)
    group_of = np.full(draft.solution.class_count, -1, dtype=np.int64)
    for place, classes in enumerate(draft.unit_classes.values()):
        group_of[classes] = place
    positions, units = draft.solution.units_of(draft.solution.of[np.concatenate(list(labels.values()))])
    meets = np.zeros((len(names), len(draft.unit_classes) + 1), dtype=bool)
    meets[at[positions], group_of[units]] = True
    for row, place in np.argwhere(meets[:, :-1]).tolist():
        yield place, names[row]
