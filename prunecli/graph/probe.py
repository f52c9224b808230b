"""Cuts a little of every group on the traced copy, follows it again, and compares what is said about atoms.

A forward pass that merely does not fail proves nothing: `reshape(batch, 4, -1)` swallows a lost head
without a word. So the cut copy is traced like the dense one, with the classes of the dense solution
as its atoms. If its code moved the remaining positions as the dense labels predict, the second trace
implies nothing new. If two classes merge or one freezes, the groups that own them cannot be cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunecli.graph.build import Draft, build
from prunecli.graph.constraints import Atoms, Constraints, Grid, Label, Labels, Reason
from prunecli.graph.copying import members
from prunecli.graph.cutting import cut
from prunecli.graph.findings import Path
from prunecli.graph.homes import alike_places
from prunecli.graph.outputs import tensors_in
from prunecli.graph.solve import Solution, solve
from prunecli.graph.source import line_of
from prunecli.graph.structure import Group, Structure
from prunecli.graph.trace import Args, Kwargs, Trace, run, run_training
from prunecli.graph.tracer import OperationError, Tracer

_OLD = Reason("frozen before")


@dataclass(frozen=True)
class Failure:
    """What went wrong when `groups` were cut together; empty where nobody can be named."""

    groups: frozenset[str]
    reason: Reason
    is_detour: bool = False
    """Whether the code of `reason.module` took another path than on the dense model."""


class Prober:
    """Tries cuts on the traced copy of one draft."""

    def __init__(self, trace: Trace, draft: Draft, args: Args, kwargs: Kwargs) -> None:
        self.trace, self.draft, self.args, self.kwargs = trace, draft, args, kwargs
        widths = {group.name: group.width for group in draft.structure.groups}
        places = dict(zip(widths, alike_places(trace, draft), strict=True))
        self.cuts = tuple(
            {name: keep(places[name], width) for name, width in widths.items()}
            for keep in ((_ends, _half) if _depends_on_sizes(trace) else (_telling,))
        )

    @property
    def names(self) -> list[str]:
        """The groups of the draft."""
        return list(self.cuts[0])

    def try_cut(self, names: Iterable[str]) -> Failure | None:
        """Cut these groups, in one way or in two; return what went wrong, or None."""
        chosen = list(names)
        failures = (self._try({name: cut[name] for name in chosen}) for cut in self.cuts)
        return next((failure for failure in failures if failure is not None), None)

    def groups_seen_in(self, module: str) -> frozenset[str]:
        """Return the groups whose positions operations in this module met."""
        seen = self.trace.findings.sizes.get(module, {})
        classes = [self.draft.solution.of[atoms] for atoms, _ in seen.values()]
        return frozenset(self.draft.groups_of(np.unique(np.concatenate(classes)))) if classes else frozenset()

    def _try(self, kept: dict[str, NDArray[np.bool_]]) -> Failure | None:
        """Cut as told. A detour that is taken with nothing cut as well does not count."""
        failure = self._attempt(kept)
        while failure is not None and failure.is_detour:
            uncut = self._attempt({})
            if uncut is None or uncut.reason.module in self.trace.unsteady:
                break
            self.trace.unsteady.add(uncut.reason.module)
            failure = self._attempt(kept)
        return failure

    def _attempt(self, kept: dict[str, NDArray[np.bool_]]) -> Failure | None:
        attempt = _Attempt(self.trace, self.draft, kept)
        try:
            outputs = attempt.run(self.args, self.kwargs)
        except OperationError as error:
            text = f"`{error.op}` fails once it is cut{_at(error)}: {error.message}"
            blamed = attempt.groups_of(error.operands) & frozenset(kept)
            return Failure(blamed, Reason(text, error.module, error.op))
        except Exception as error:  # an assertion or any other failure in the model's own code
            text = f"the code of the model fails once it is cut{_at(error)}: {_first_line(error)}"
            return Failure(frozenset(), Reason(text, attempt.tracer.module))
        return attempt.verdict(outputs, self.trace.output_shapes)


class _Attempt:
    """One cut, traced, with dense classes as atoms (class c is atom c + 1)."""

    def __init__(self, trace: Trace, draft: Draft, kept: dict[str, NDArray[np.bool_]]) -> None:
        self.trace, self.draft, self.solution = trace, draft, draft.solution
        gone = [draft.unit_classes[name][~stays] for name, stays in kept.items()]
        self.stays = _classes_that_stay(
            self.solution, np.concatenate(gone) if gone else np.empty(0, np.int64)
        )
        self.model = cut(trace.model, draft.structure, kept)
        self.constraints = self._known()
        self.before = solve(self.constraints)
        """What is known before the cut copy is traced, which adds to the constraints."""
        self.known_grids = len(self.constraints.grids)
        tensors, parameters = members(self.model)
        self._known_labels: dict[bytes, Atoms] = {}
        labels = {name: self._relabel(trace.labels[name], tensor) for name, tensor in tensors.items()}
        self.tracer = Tracer(self.constraints, tensors, labels, parameters, trace.kernels)
        self.tracer.skips_repeats &= bool(trace.blocks)

    def run(self, args: Args, kwargs: Kwargs) -> Any:
        outputs = run(self.tracer, self.model, args, kwargs)
        self.tracer.close(outputs)
        self.path = self.tracer.findings.path_so_far()
        if self.trace.follows_training:
            run_training(self.tracer, self.model, args, kwargs)
        return outputs

    def groups_of(self, labels: Iterable[Atoms]) -> frozenset[str]:
        """Return the groups behind labels of this attempt, fresh atoms included."""
        atoms = np.unique(np.concatenate([np.empty(0, np.int64), *labels]))
        for grid in reversed(self.constraints.grids[self.known_grids :]):
            if np.isin(grid.rows, atoms).any() or np.isin(grid.columns, atoms).any():
                atoms = np.union1d(atoms, grid.cells)
        classes = atoms[(atoms > 0) & (atoms <= self.solution.class_count)] - 1
        return frozenset(self.draft.groups_of(classes))

    def verdict(self, outputs: Any, dense_shapes: list[tuple[int, ...]]) -> Failure | None:
        """Compare what this trace implies with what the dense one implied."""
        before, after = self.before, solve(self.constraints)
        atoms = np.flatnonzero(self.stays) + 1
        atoms = atoms[~before.is_frozen[before.of[atoms]]]
        changed = _merged(before.of[atoms], after.of[atoms]) | after.is_frozen[after.of[atoms]]
        blamed = frozenset(self.draft.groups_of(atoms[changed] - 1))
        if blamed:
            return Failure(blamed, _reason_of(after, atoms[changed]))
        if _shapes(outputs) != dense_shapes:
            return Failure(frozenset(), Reason("the outputs of the network change their shape"))
        return self._first_detour(after)

    def _first_detour(self, after: Solution) -> Failure | None:
        """Compare what the code of each module did with what it did on the dense model."""
        for module, dense in self.trace.path.items():
            if module in self.trace.unsteady:
                continue
            path = self.path.get(module, Path())
            if dense.operations != path.operations:
                return _detour(module, "the code of the model takes another path once it is cut")
            blamed = self._misplaced(dense.picks, path.picks, after)
            if blamed:
                return _detour(module, "the code of the model slices it at a fixed position", blamed)
            if not _same_numbers(dense.scalars, path.scalars):
                return _detour(module, "a number in the arithmetic is computed from its size")
        return None

    def _misplaced(self, dense: list[Atoms], found: list[Atoms], after: Solution) -> frozenset[str]:
        """Return the groups of the first slice that did not take what is left of the dense one."""
        for place, part in enumerate(dense):
            classes = self.solution.of[part]
            expected = classes[self.stays[classes]] + 1
            if place >= len(found) or not _alike(after, found[place], expected):
                blamed = self.draft.groups_of(classes)
                if blamed:
                    return frozenset(blamed)
        return frozenset()

    def _known(self) -> Constraints:
        """Return what the dense solution says about the classes that stay."""
        constraints = Constraints(count=self.solution.class_count + 1)
        constraints.freeze(np.flatnonzero(self.solution.is_frozen) + 1, _OLD)
        for grid in self.trace.constraints.grids:
            rows, columns = self.solution.of[grid.rows], self.solution.of[grid.columns]
            row_stays, column_stays = self.stays[rows], self.stays[columns]
            cells = self.solution.of[grid.cells][row_stays][:, column_stays]
            if not cells.size:
                continue
            rows, columns = rows[row_stays], columns[column_stays]
            constraints.grids.append(Grid(cells + 1, rows + 1, columns + 1))
            for part, whole in ((rows, grid.rows), (columns, grid.columns)):
                if part.size == 1 and whole.size > 1:  # its last position cannot go
                    constraints.freeze(part + 1, _OLD)
        return constraints

    def _relabel(self, labels: Labels, tensor: Tensor) -> Labels:
        result: list[Label] = []
        for label, length in zip(labels, tensor.shape, strict=True):
            if isinstance(label, np.ndarray) and length > 1:
                classes = self.solution.of[label]
                atoms = classes[self.stays[classes]] + 1
                result.append(self._known_labels.setdefault(atoms.tobytes(), atoms))  # most ties are known
            else:
                result.append(None if isinstance(label, np.ndarray) else label)
        return tuple(result)


def freeze_what_fails(trace: Trace, args: Args, kwargs: Kwargs) -> Structure:
    """Find the groups that the model's own code lets us cut; freeze the others with the reason."""
    while True:
        draft = build(trace, solve(trace.constraints))
        prober = Prober(trace, draft, args, kwargs)
        failure = prober.try_cut(prober.names)
        if failure is None or not prober.names:
            return draft.structure
        found = _spread_blame(prober, failure) if failure.groups else _search(prober, failure)
        for name, reason in found.items():
            classes = draft.unit_classes[name]
            trace.constraints.freeze_first(np.flatnonzero(np.isin(draft.solution.of, classes)), reason)


def _spread_blame(prober: Prober, failure: Failure) -> dict[str, Reason]:
    """Freeze the groups named, and every group that plays the same part in the same kind of module."""
    structure = prober.draft.structure
    alone = frozenset(name for name in failure.groups if prober.try_cut([name]) is not None)
    if not alone:  # what was cut along with them is at fault
        return _search(prober, failure)
    failure = Failure(alone, failure.reason)  # an operation names all it was given
    kinds = {_kind(prober.trace, structure.by_name[name]) for name in failure.groups}
    alike = [group.name for group in structure.groups if _kind(prober.trace, group) in kinds]
    suspects = [name for name in alike if name not in failure.groups]
    blamed = set(failure.groups)
    if suspects and prober.try_cut(suspects[:1]) is not None:
        blamed |= {name for name in suspects if len(suspects) > _FEW or prober.try_cut([name]) is not None}
    return dict.fromkeys(sorted(blamed), failure.reason)


_FEW = 12
"""So many groups are tried one by one; more than that share the verdict on one of them."""


def _search(prober: Prober, failure: Failure) -> dict[str, Reason]:
    """Nobody was named: try one group of each kind alone, those seen where it failed first; then together."""
    near = prober.groups_seen_in(failure.reason.module)
    kinds: dict[object, list[str]] = {}
    for group in sorted(prober.draft.structure.groups, key=lambda group: group.name not in near):
        kinds.setdefault(_kind(prober.trace, group), []).append(group.name)
    frozen: dict[str, Reason] = {}
    for names in kinds.values():
        if frozen and names[0] not in near:
            break  # what is found explains the failure; if not, the next probe will say so
        alone = prober.try_cut(names[:1])
        if alone is not None:
            frozen |= dict.fromkeys(names if len(names) > _FEW else _failing(prober, names), alone.reason)
    return frozen or _search_together(prober, list(kinds.values()), failure)


def _search_together(prober: Prober, kinds: list[list[str]], failure: Failure) -> dict[str, Reason]:
    """No kind fails alone: add one kind after the other, and freeze those that cannot join."""
    frozen: dict[str, Reason] = {}
    accepted: list[str] = []
    for names in kinds:
        together = prober.try_cut([*accepted, *names])
        if together is None:
            accepted += names
        else:
            frozen |= dict.fromkeys(names, together.reason)
    return frozen or dict.fromkeys(prober.names, failure.reason)


def _failing(prober: Prober, names: list[str]) -> list[str]:
    return [name for name in names if prober.try_cut([name]) is not None]


def _kind(trace: Trace, group: Group) -> object:
    """Groups are of one kind when the same sort of layers, by class and name, hold them in the same way.

    Heads, which hold neighbouring positions, are of another kind than the places within each head.
    """
    return frozenset(
        (*_sort_of(trace, member.tensor), member.dim, bool((member.units[:1] == member.units[1:2]).any()))
        for member in group.members
    )


def _sort_of(trace: Trace, tensor: str) -> tuple[object, ...]:
    module, _, leaf = tensor.rpartition(".")
    layer = module.rpartition(".")[2]
    return type(trace.model.get_submodule(module)).__name__, "" if layer.isdigit() else layer, leaf


def _depends_on_sizes(trace: Trace) -> bool:
    """Return whether code splits dimensions, takes parts of them, or gives their lengths to operations.

    Where it does not, all that can go wrong is that it asks for a size and takes another path; that shows
    when half is cut. Otherwise a size may be right by chance, or parts may fit by chance, in a single trial.
    """
    has_picks = any(path.picks for path in trace.path.values())
    return trace.findings.is_sized or has_picks


def _ends(place: int, width: int) -> NDArray[np.bool_]:
    """Keep all but one to four units at both ends; groups of equal width differ, so that mix-ups show.

    Of few units, four groups in a row lose different numbers of them here, or else in `_half`.
    """
    is_few = width <= _FEW
    count = 1 + (place // 2 if is_few else place) % min(4, max(1, width // 2 if is_few else width // 3))
    stays = np.ones(width, dtype=bool)
    stays[: (count + 1) // 2] = False
    stays[width - count // 2 :] = False
    return stays


def _half(place: int, width: int) -> NDArray[np.bool_]:
    """Keep about half of the units, at random; of a few units, another number in each group."""
    generator = np.random.default_rng(place)
    few = (width + 1) // 2 + place % (width // 2)
    count = few if width <= _FEW else round(width * generator.uniform(0.35, 0.65))
    stays = np.zeros(width, dtype=bool)
    stays[generator.choice(width, count, replace=False)] = True
    return stays


def _telling(place: int, width: int) -> NDArray[np.bool_]:
    """Keep about half of the units, so many that what asks whether a size divides by 2, 3, 5 or 7 shows.

    The numbers differ from group to group, as far as there are any left: what compares sizes shows too.
    """
    low, high = round(0.3 * width), round(0.7 * width)
    if width <= _FEW:
        low, high = max(min(2, width - 1), width // 3), width - 1  # a single position has no label
    counts = list(range(low, high + 1))
    for divisor in (2, 3, 5, 7):
        telling = [count for count in counts if (count % divisor == 0) != (width % divisor == 0)]
        other = [count for count in counts if count % divisor != width % divisor]
        counts = next((each for each in (telling, other) if len(each) > 1 or divisor == 2 and each), counts)
    stays = np.zeros(width, dtype=bool)
    stays[np.random.default_rng(place).choice(width, counts[place % len(counts)], replace=False)] = True
    return stays


def _classes_that_stay(solution: Solution, gone: NDArray[np.int64]) -> NDArray[np.bool_]:
    stays = np.ones(solution.class_count, dtype=bool)
    cells, units = solution.owners()
    stays[cells[np.isin(units, gone)]] = False
    return stays


def _merged(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a bool per atom: its class after joins atoms of different classes before."""
    order = np.lexsort((before, after))
    joins = (after[order][1:] == after[order][:-1]) & (before[order][1:] != before[order][:-1])
    return np.isin(after, after[order][1:][joins])


def _reason_of(solution: Solution, atoms: Atoms) -> Reason:
    index = int(solution.reason_of[solution.of[atoms]].min())
    if index < len(solution.reasons) and solution.reasons[index] is not _OLD:
        return solution.reasons[index]
    return Reason("the code of the model mixes up its positions once it is cut: a size there is fixed")


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(output.shape) for output in tensors_in(outputs)]


def _detour(module: str, text: str, groups: frozenset[str] = frozenset()) -> Failure:
    return Failure(groups, Reason(text, module), is_detour=True)


def _alike(solution: Solution, left: Atoms, right: Atoms) -> bool:
    """Return whether two labels say the same, position by position, where anything can be cut."""
    if left.size != right.size:
        return False
    one, other = solution.of[left], solution.of[right]
    return bool(((one == other) | (solution.is_frozen[one] & solution.is_frozen[other])).all())


def _same_numbers(left: list[float], right: list[float]) -> bool:
    return left == right or len(left) == len(right) and np.allclose(left, right, rtol=1e-12, equal_nan=True)


def _at(error: BaseException) -> str:
    line = line_of(error)
    return f", at {line}" if line else ""


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
