"""A run in the middle -> one safetensors file, and back: bit for bit, without pickle.

One file, so that a run which dies at any moment leaves either the old state or the new one, never a
mixture of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prunecli.errors import CheckpointError
from prunecli.graph.copying import named_tensors
from prunecli.history import EpochRow
from prunecli.strict_json import FieldError, Json, from_plain, parse_json, to_plain
from prunecli.training.optimising import load_state, plain_state, state_tensors
from prunecli.training.schedule import Schedule
from prunecli.training.training import Phase, Place, Tally, Training

VERSION = 2
_METADATA_KEY = "prunecli.run"


@dataclass(frozen=True)
class _Run:
    """Everything of a run that is no tensor."""

    settings: Mapping[str, Json]
    place: Place
    tally: Tally
    phase: Phase | None
    optimising: Mapping[str, Json]
    scaler: Mapping[str, Json]
    schedule: Mapping[str, Json]
    history: tuple[EpochRow, ...] = ()
    notes: tuple[str, ...] = ()


def to_bytes(training: Training, schedule: Schedule, settings: Mapping[str, Json]) -> bytes:
    """Return a file from which the run goes on.

    Args:
        training: the run.
        schedule: what directs it.
        settings: what it was started with; a run with others is another run.
    """
    tensors = {f"model.{name}": tensor for name, tensor in named_tensors(training.model).items()}
    optimising: Mapping[str, Json] = {}
    if training.optimising is not None:
        optimising = plain_state(training.optimising)
        for name, key, tensor in state_tensors(training.optimising.optimizer, training.model):
            tensors[f"optimizer.{key}.{name}"] = tensor
    tensors |= {
        f"gradient.{name}": parameter.grad
        for name, parameter in training.model.named_parameters()
        if parameter.grad is not None  # of minibatches whose step is still to come
    }
    if training.average is not None:
        averaged = named_tensors(training.average.module)
        tensors |= {f"average.{name}": tensor for name, tensor in averaged.items()}
        tensors["averaged"] = training.average.n_averaged
    for name, stays in training.kept.items():
        tensors[f"kept.{name}"] = torch.from_numpy(stays)
        tensors[f"present.{name}"] = torch.from_numpy(training.present[name])
    tensors |= {f"mask.{name}": mask for name, mask in training.dense_masks.items()}
    tensors |= {f"schedule.{name}": tensor for name, tensor in schedule.tensors().items()}
    run = _Run(
        settings,
        training.place,
        training.tally,
        training.phase,
        optimising,
        training.scaler.state_dict(),
        schedule.plain(),
        tuple(training.history),
        tuple(training.notes),
    )
    metadata = {_METADATA_KEY: json.dumps({"version": VERSION, **to_plain(run)})}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save_tensors(plain, metadata)


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A file that `to_bytes` made."""

    source: str
    _run: _Run
    _tensors: Mapping[str, Tensor]

    @property
    def settings(self) -> Mapping[str, Json]:
        """What the run was started with."""
        return self._run.settings

    def restore(self, training: Training, schedule: Schedule) -> None:
        """Bring a fresh run to where this one stood.

        Raises:
            CheckpointError: it is a run of another network.
        """
        run = self._run
        training.place, training.tally, training.phase = run.place, run.tally, run.phase
        training.history, training.notes = list(run.history), list(run.notes)
        try:
            training.set_masks(self._part("mask."))
            training.follow_average()
            kept, present = (self._masks(f"{kind}.") for kind in ("kept", "present"))
            training.resume_at(kept, present)
            _fill(training.model, self._part("model."))
            if training.average is not None:
                _fill(training.average.module, self._part("average."))
                training.average.n_averaged.copy_(self._tensors["averaged"])
            if training.optimising is not None:
                found = {}
                for name, tensor in self._part("optimizer.").items():
                    key, _, parameter = name.partition(".")
                    found[parameter, key] = tensor
                load_state(training.optimising, training.model, found, run.optimising)
            parameters = dict(training.model.named_parameters())
            gradients = self._part("gradient.") if training.peers.is_first else {}  # they are added up
            for name, gradient in gradients.items():
                parameters[name].grad = torch.empty_like(parameters[name], requires_grad=False).copy_(
                    gradient
                )
            if training.scaler.is_enabled():
                training.scaler.load_state_dict(dict(run.scaler))
            schedule.load(training, self._part("schedule."), run.schedule)
        except (LookupError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(
                f"`{self.source}` does not fit the network ({type(error).__name__}: {error}). "
                "Start over with `--force`."
            ) from error

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self._tensors.items()
            if name.startswith(prefix)
        }

    def _masks(self, prefix: str) -> dict[str, Any]:
        return {name: tensor.numpy().astype(np.bool_) for name, tensor in self._part(prefix).items()}


def from_bytes(content: bytes, source: str) -> SavedRun:
    """Read what `to_bytes` wrote.

    Raises:
        CheckpointError: it is no such file, is damaged, or comes from a later version.
    """
    size = int.from_bytes(content[:8], "little")
    try:
        outer = parse_json(content[8 : 8 + size])
        header = parse_json(outer["__metadata__"][_METADATA_KEY], finite=False)
        version = header.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"`{source}` holds no run. Start over with `--force`.") from None
    if version != VERSION:
        raise CheckpointError(
            f"`{source}`: its format version is {version}, this prunecli reads {VERSION}. "
            "Start over with `--force`, or install the prunecli that wrote it."
        )
    try:
        return SavedRun(source, from_plain(_Run, header), load_tensors(content))
    except (SafetensorError, FieldError) as error:
        raise CheckpointError(f"`{source}` is damaged: {error}. Start over with `--force`.") from None


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set every parameter and buffer."""
    own = named_tensors(model)
    if set(own) != set(tensors):
        raise ValueError("other tensors")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(tensor.shape)}")
            tensor.copy_(tensors[name])
