"""`prune --streaming`: the model is opened with parameters that are read when they are used."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from prunecli.checkpoint import Checkpoint, load_into
from prunecli.errors import NotPrunableError, SpecError, UsageError
from prunecli.export.rebuild import loose_tensors
from prunecli.export.record import METADATA_KEY
from prunecli.growth import Ceiling
from prunecli.importance import find_method, methods
from prunecli.model import bare, build_model
from prunecli.on_demand import OnDemand
from prunecli.pipeline.finding import read, spec_of
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened, open_model
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.weighing import prunes_weights
from prunecli.spec import ModelSpec

STREAMING = "`--streaming`"


def with_streaming(choices: Choices) -> Choices:
    """Return the choices with what streaming brings along: the CPU, and no ONNX file.

    Raises:
        UsageError: something else is asked for that needs the whole network in memory.
    """
    recovery, given = choices.recovery, choices.given
    refused = {
        "--at-init": (choices.start.at_init, "a new model has no file to be read from"),
        "--granularity weight": (prunes_weights(choices.importance), "masks are as large as the network"),
        "--steps": (choices.steps.are_wanted, "training holds all weights"),
        "--reconstruct": (recovery.reconstruct, "layers are solved in memory"),
        "--recalibrate-bn": (recovery.recalibrate_bn, "it reads the network anew for every batch"),
        "--onnx": ("onnx" in given and choices.files.onnx, "it is made of a network in memory"),
        f"--device {choices.machine.device}": (
            choices.machine.device not in ("auto", "cpu"),
            "each tensor is used on the CPU, where it is read",
        ),
    }
    for name, (is_given, why) in refused.items():
        if is_given:
            raise UsageError(f"`{name}` does not go with {STREAMING}: {why}. Leave out one of them.")
    if choices.decision.apply is None and choices.decision.scores is None:
        for name in (*choices.importance.method, *filter(None, [choices.importance.fallback])):
            _refuse_data(name)
    machine, files = replace(choices.machine, device="cpu"), replace(choices.files, onnx=False)
    return replace(choices, machine=machine, files=files)


def open_streaming(checkpoint: str | None, choices: Choices, listener: Listener) -> Opened:
    """Open a checkpoint without reading more of it than its header, and each tensor once to check it.

    Buffers are small, and are read.

    Raises:
        SpecError: there is no spec, or building the model without values failed.
        CheckpointError: the file is no safetensors, is damaged, or does not fit the model.
        NotPrunableError: the model holds parameters in places where they cannot be read on demand.
    """
    assert checkpoint is not None
    found = read(checkpoint, choices.source, on_demand=True)
    spec = spec_of(found, choices.source, choices.samples, listener)
    if METADATA_KEY in found.metadata:
        opened = open_model(found, choices.source, choices.samples, listener, spec=spec)
        _read_buffers(opened.model)
    else:
        model = _built(spec, found)
        match = load_into(model, found, spec)
        opened = Opened(found.path.name, spec, model, found, None, match)
        listener.note(f"{opened.name}: {opened.read_as}; all tensors match `{spec.factory}`")
    if any(tensor.is_meta for tensor in loose_tensors(opened.model)):
        raise NotPrunableError(
            f"`{spec.factory}` keeps parameters, or what it made of them, beside those of its modules, where "
            f"{STREAMING} cannot read them. Prune it without."
        )
    listener.note("streaming: tensors are read when they are used; no ONNX file")
    return opened


def _built(spec: ModelSpec, checkpoint: Checkpoint) -> nn.Module:
    try:
        with bare():
            return build_model(spec, ceiling=Ceiling.over(checkpoint.tensors))
    except SpecError as error:
        if error.__cause__ is None:
            raise
        raise SpecError(
            f"{error} Parameters have no values while the model is built for {STREAMING}; prune it without."
        ) from error


def _read_buffers(model: nn.Module) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if isinstance(buffer, OnDemand):
                module._buffers[name] = buffer.read()


def _refuse_data(name: str) -> None:
    """Refuse a method that runs the network on samples."""
    if find_method(name).needs_data:
        others = ", ".join(f"`{each.name}`" for each in methods() if not each.needs_data)
        raise UsageError(
            f"`--method {name}` looks at samples, and {STREAMING} at weights alone. Choose one of {others}; "
            "or measure elsewhere, and bring `--scores` or `--apply`."
        )
