"""A checkpoint and what the user says of it -> the spec of its model; or what its tensors look like."""

from __future__ import annotations

import shlex
from pathlib import Path

from prunecli.architectures import Match, Recognised, recognise
from prunecli.checkpoint.names import listed, printable
from prunecli.checkpoint.read import Checkpoint, read_checkpoint
from prunecli.errors import MissingSpecError, SpecError
from prunecli.export.unfinished import finish_renames
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.settings import Samples, Source
from prunecli.spec import ModelSpec, find_spec
from prunecli.spec.discovery import METADATA_KEY, parse_arguments

AUTO = "auto"
"""What `--spec` says for: tell it by the tensors."""


def read(path: str, source: Source, on_demand: bool = False) -> Checkpoint:
    """Read a checkpoint as the user says; each tensor when it is used, if that is wanted.

    Raises:
        CheckpointError: it is damaged, unsafe, or holds no parameters that can be pruned.
    """
    finish_renames(Path(path).parent)
    return read_checkpoint(Path(path), key=source.key, allow_pickle=source.allow_pickle, on_demand=on_demand)


def spec_of(checkpoint: Checkpoint, source: Source, samples: Samples, listener: Listener) -> ModelSpec:
    """Return the spec that is named, inside, or beside the checkpoint; with `auto`, what it looks like.

    Raises:
        MissingSpecError: there is none. The message names what the checkpoint looks like, if that is clear.
        SpecError: it is malformed; or `auto`, and no architecture fits, or several do.
    """
    if source.spec == AUTO and METADATA_KEY not in checkpoint.metadata:
        match = _the_match(checkpoint)
        listener.note(f"{checkpoint.path.name} has the tensors of {match.text}")
        return _find(checkpoint, source, samples, match)
    try:
        return _find(checkpoint, source, samples)
    except MissingSpecError:
        found = likeness(checkpoint).choice
        if found is None:
            raise
        raise MissingSpecError(
            f"`{checkpoint.path.name}` does not say how to build its model, but looks like {found.text}: "
            f"pass `{found.options}`, or `--spec {AUTO}`."
        ) from None


def likeness(checkpoint: Checkpoint) -> Recognised:
    """Say which architectures have the tensors of the checkpoint."""
    return recognise({name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()})


def _find(checkpoint: Checkpoint, source: Source, samples: Samples, match: Match | None = None) -> ModelSpec:
    """Look the spec up; what the user typed counts more than what the shapes say."""
    implied = dict(match.args) if match is not None else {}
    return find_spec(
        checkpoint.path,
        match.factory if match is not None else source.spec if source.spec != AUTO else None,
        metadata=checkpoint.metadata,
        trust=source.trust_spec,
        spec_args=implied | parse_arguments(source.spec_arg),
        input=source.input,
        data=samples.data,
        train_data=samples.train_data,
        test_data=samples.test_data,
    )


def _the_match(checkpoint: Checkpoint) -> Match:
    """Return the one architecture that fits.

    Raises:
        SpecError: none does, or several do.
    """
    found, name = likeness(checkpoint), checkpoint.path.name
    if found.choice is not None:
        return found.choice
    if found.matches:
        texts = listed((match.options for match in found.matches), 6)
        raise SpecError(
            f"`--spec {AUTO}`: `{name}` has the tensors of several architectures. Pick one: {texts}."
        )
    near = "; ".join(
        f"{', '.join(each.factories[:3])} has {printable(each.difference)}" for each in found.near[:2]
    )
    raise SpecError(
        f"`--spec {AUTO}`: no architecture of torchvision or timm that is known has the tensors of `{name}`."
        f"{f' Nearest: {near}.' if near else ''}\n"
        f"Say how to build it with `--spec`; `prunecli init {shlex.quote(name)}` writes a spec to fill in."
    )
