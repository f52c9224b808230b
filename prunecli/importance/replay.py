"""Runs a forward pass again with some units switched off, and computes only what that changes.

The dense pass is recorded call by call. In a replay the code of the model runs again, but a call whose
operands are as they were hands out what it returned then: everything in front of the units that are
off, and every branch beside them. Several variants (each with other units off) run together, one behind
the other in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from prunecli.graph.calls import CallWatch
from prunecli.graph.outputs import tensors_in
from prunecli.graph.structure import CallKey
from prunecli.importance.gates import Gates, Gating, Place, Places, widest


class CannotReplayError(Exception):
    """The code of the model changes tensors in a way that a recording cannot hold."""


class Marked:
    """Tensors that are marked, told by which object they are. They may go meanwhile."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._by_id: dict[int, ref[Tensor]] = {}
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Mark tensors."""
        for tensor in tensors:
            self._by_id[id(tensor)] = ref(tensor)

    def __contains__(self, tensor: Tensor) -> bool:
        found = self._by_id.get(id(tensor))
        return found is not None and found() is tensor

    def any_of(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether one of them is marked."""
        return any(tensor in self for tensor in tensors)


class Recording:
    """What the calls of one forward pass returned, and which of it is data.

    Args:
        inputs: The tensors that the forward pass is given.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.results: dict[CallKey, Any] = {}
        self.overwrites: dict[CallKey, tuple[int, ...]] = {}
        """Calls that write to operands, and to which: they get copies of these."""
        self.data = Marked(inputs)
        """Tensors that come from the inputs; others (weights, constants) are the same for all samples."""

    def bytes(self) -> tuple[int, int]:
        """Return the size of all results together, and of the largest."""
        sizes = {}
        for result in self.results.values():
            for tensor in tensors_in(result):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
        return sum(sizes.values()), max(sizes.values(), default=0)


class Finding(CallWatch):
    """Runs a forward pass to find the calls that write to their operands."""

    def __init__(self, modules: Sequence[str], recording: Recording) -> None:
        super().__init__(modules)
        self.recording = recording

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call, and note what it writes to."""
        before = [arg._version if isinstance(arg, Tensor) else 0 for arg in args]
        result = func(*args, **kwargs)
        written = tuple(
            place
            for place, (arg, version) in enumerate(zip(args, before, strict=True))
            if isinstance(arg, Tensor) and arg._version != version and not arg.requires_grad
            if not _is_statistic(key, place)
        )
        if written:
            if any(result is not args[place] for place in written):
                raise CannotReplayError(f"`{key.function}` in `{key.module}` writes to a part of a tensor")
            self.recording.overwrites[key] = written
        return result


class Recorder(CallWatch):
    """Runs a forward pass and records it."""

    def __init__(self, modules: Sequence[str], recording: Recording) -> None:
        super().__init__(modules)
        self.recording = recording

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call, and record it."""
        args = _with_copies(args, self.recording.overwrites.get(key, ()))
        result = func(*args, **kwargs)
        results = tensors_in(result)
        if results:
            self.recording.results[key] = result
            if self.recording.data.any_of([*tensors_in((args, kwargs)), *results]):
                self.recording.data.add(results)
        return result


class Replay(Gating):
    """Runs variants of a recorded forward pass, each with gates of its own.

    Args:
        modules: The names of the modules that are running; see `following`.
        places: Where gates stand.
        gates: Group name -> gates of shape [variants, width].
        samples: How many samples were recorded.
        recording: The dense pass.
    """

    def __init__(
        self,
        modules: Sequence[str],
        places: Places,
        gates: Gates,
        samples: int,
        recording: Recording,
    ) -> None:
        self.variants = len(next(iter(gates.values())))
        by_row = {
            name: gate[0] if self.variants == 1 else gate.repeat_interleave(samples, dim=0)
            for name, gate in gates.items()
        }
        super().__init__(modules, places, by_row, self.variants * samples)
        self.variant_gates, self.recording = gates, recording
        self.changed = Marked()

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Return what was recorded, or carry out the call if something before it has changed."""
        recorded = self.recording.results.get(key)
        places = self.places.get(key, ())
        is_new = recorded is None or self.changed.any_of(tensors_in((args, kwargs)))
        if not is_new and not places:
            return recorded
        if is_new or any(place.operand is not None for place in places):
            result = None if is_new else self._without_units(key, func, args, kwargs, places)
            if result is None:
                result = self._again(key, func, args, kwargs, places)
        else:
            result = self._repeated(recorded)
        for place in places:
            if place.operand is None:
                result = self._gated(key, result, result, place)
        self.changed.add(tensors_in(result))
        return result

    def _again(self, key: CallKey, func: Any, args: Any, kwargs: Any, places: Sequence[Place]) -> Any:
        """Carry out the call on all variants."""
        args = _with_copies(args, self.recording.overwrites.get(key, ()))
        args = [_mapped(self._as_wide, arg) for arg in args]
        kwargs = {name: _mapped(self._as_wide, arg) for name, arg in kwargs.items()}
        for place in places:
            if place.operand is not None:
                args[place.operand] = self._gated(key, args[place.operand], widest(args), place)
        return func(*args, **kwargs)

    def _without_units(
        self, key: CallKey, func: Any, args: Any, kwargs: Any, places: Sequence[Place]
    ) -> Tensor | None:
        """Subtract from the recorded output of a layer what the units that are off gave to it.

        None where the layer is not such that the data of a unit meet one slice of the weight.
        """
        dense = self.recording.results[key]
        if len(places) != 1 or not is_plain_product(key.function, args, kwargs):
            return None
        factors, data, weight = places[0].factors(self.variant_gates), args[0], args[1]
        outputs = []
        for factor in factors:
            off = torch.nonzero(factor != 1).flatten()
            if (factor[off] != 0).any():
                return None
            if not len(off):
                outputs.append(dense)
                continue
            gone = func(
                data.index_select(places[0].dim, off), weight.index_select(1, off), None, *args[3:],
                **{name: value for name, value in kwargs.items() if name != "bias"},
            )  # fmt: skip
            outputs.append(dense - gone)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _as_wide(self, tensor: Tensor) -> Tensor:
        """Return a tensor with one batch per variant; weights and constants as they are."""
        is_wide = self.variants == 1 or tensor in self.changed or tensor not in self.recording.data
        return tensor if is_wide else self._repeated(tensor)

    def _repeated(self, recorded: Any) -> Any:
        if self.variants == 1:
            return recorded
        return tree_map_only(
            Tensor, lambda tensor: tensor.repeat(self.variants, *[1] * (tensor.dim() - 1)), recorded
        )


def is_plain_product(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call is a linear layer or convolution in which every output reads every input."""
    if len(args) < 2 or (function != "linear" and len(args) < 3):
        return False  # a weight given by name, or a convolution whose stride and padding are
    groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
    return function == "linear" or (function in {"conv1d", "conv2d", "conv3d"} and groups == 1)


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return tree_map_only(Tensor, change, value) if isinstance(value, (tuple, list, dict)) else value


def _with_copies(args: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    return tuple(arg.clone() if place in places else arg for place, arg in enumerate(args))


def _is_statistic(key: CallKey, place: int) -> bool:
    """Return whether an operand is a running mean or variance, which belongs to the model."""
    return key.function in {"batch_norm", "instance_norm"} and place in (1, 2)
