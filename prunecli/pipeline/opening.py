"""A checkpoint and what the user says of it -> a model ready to run, and its structure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from prunecli.checkpoint import Checkpoint, MatchReport, check_finite, load_into
from prunecli.costs import describe
from prunecli.errors import UsageError
from prunecli.export.masks import from_record
from prunecli.export.precision import Precisions
from prunecli.export.record import METADATA_KEY, PrunedRecord
from prunecli.export.to_safetensors import rebuild_pruned
from prunecli.give_back import give_back
from prunecli.graph.copying import copy_to_meta, named_tensors
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Structure
from prunecli.growth import Ceiling
from prunecli.model import bare, build_model, example_inputs
from prunecli.on_demand import is_on_demand
from prunecli.pipeline.finding import AUTO, read, spec_of
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.running import float_dtype
from prunecli.pipeline.settings import Samples, Source, Start
from prunecli.report import ModelFacts
from prunecli.spec import ModelSpec, read_spec
from prunecli.weights.network import Masks


@dataclass(frozen=True, eq=False)
class Opened:
    """A model on the CPU, in eval mode, with where it came from."""

    name: str
    """The checkpoint's name, without its folder; of a new model, what its spec is called."""
    spec: ModelSpec
    model: nn.Module
    checkpoint: Checkpoint | None = None
    """Without the values of its tensors, which the model has; None for a new model."""
    record: PrunedRecord | None = None
    """What the file says of itself, if prunecli wrote it."""
    match: MatchReport | None = None
    """How the names of the checkpoint met those of the model; None for a file that prunecli wrote."""

    @property
    def file(self) -> Checkpoint:
        """The checkpoint, of a model that was not made anew."""
        assert self.checkpoint is not None
        return self.checkpoint

    @property
    def read_as(self) -> str:
        """How the checkpoint was read."""
        if self.record is not None:
            return "pruned file"
        parts = [self.file.kind]
        if self.file.wrapper:
            parts.append(f"in `{self.file.wrapper}`")
        if self.match is not None and self.match.prefix:
            parts.append(f"prefix `{self.match.prefix}` removed")
        return ", ".join((*parts, *(self.match.cast if self.match else ())))

    @cached_property
    def came_in(self) -> Precisions:
        """The precision that tensors have in the file, by the model's names, where it is not the model's."""
        if self.record is not None:
            return {name: self.file.tensors[name].dtype for name in self.record.widened}
        return self.match.came_in if self.match is not None else {}

    @cached_property
    def example(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """One made-up sample: positional and keyword arguments."""
        return example_inputs(self.spec, dtype=float_dtype(self.model))

    @cached_property
    def structure(self) -> Structure:
        """What goes together, and what is frozen."""
        args, kwargs = self.example
        return find_groups(self.model, args, kwargs)

    @cached_property
    def facts(self) -> ModelFacts:
        """What a report says of the model."""
        return describe(self.model, *self.example)

    @cached_property
    def masks(self) -> Masks | None:
        """Which weights stay, of tensors that were pruned weight by weight; None where none was.

        Raises:
            CheckpointError: what the file says of it does not fit its tensors.
        """
        if self.record is None or not self.record.masks:
            return None
        return from_record(self.record.masks, named_tensors(self.model), self.name)

    def forget_weights(self) -> None:
        """Leave shapes of the model only, once nobody will run it again: it is half of what is held."""
        _ = self.facts  # which may need them
        if not is_on_demand(self.model):
            object.__setattr__(self, "model", copy_to_meta(self.model))
            give_back()


def open_model(
    path: str | Checkpoint,
    source: Source,
    samples: Samples,
    listener: Listener,
    spec: ModelSpec | None = None,
    is_bare: bool = False,
) -> Opened:
    """Read a checkpoint, find its spec, build the model and load the parameters into it.

    Args:
        path: the checkpoint, which may have been read already.
        source: what the user says of the model.
        samples: what the user says of the data.
        listener: hears how the checkpoint was read.
        spec: how the model is built, where that is known already.
        is_bare: let the model hold the tensors of the file, which may be mapped, and no copies of them.

    Raises:
        SpecError: there is no spec, or it is not trusted, or building the model failed.
        CheckpointError: the file cannot be read, or does not fit the model.
    """
    checkpoint = path if isinstance(path, Checkpoint) else read(path, source)
    spec = spec or spec_of(checkpoint, source, samples, listener)
    if METADATA_KEY in checkpoint.metadata:
        record = PrunedRecord.from_json(checkpoint.metadata[METADATA_KEY], str(checkpoint.path))
        model = rebuild_pruned(checkpoint.path, record, checkpoint.tensors, spec)
        for name, tensor in named_tensors(model).items():
            check_finite(checkpoint.path, name, tensor, isinstance(tensor, nn.Parameter))
        opened = Opened(checkpoint.path.name, spec, model, _without_values(checkpoint), record)
        listener.note(f"{opened.name}: {opened.read_as} of `{spec.factory}`")
    else:
        with bare() if is_bare else nullcontext():
            model = build_model(spec, ceiling=Ceiling.over(checkpoint.tensors))
        match = load_into(model, checkpoint, spec)
        opened = Opened(checkpoint.path.name, spec, model, _without_values(checkpoint), None, match)
        listener.note(f"{opened.name}: {opened.read_as}; all tensors match `{spec.factory}`")
    return opened


def _without_values(checkpoint: Checkpoint) -> Checkpoint:
    """Keep of the tensors only what they are like, so that their memory is free."""
    return replace(checkpoint, tensors={name: each.to("meta") for name, each in checkpoint.tensors.items()})


def open_start(
    checkpoint: str | None, source: Source, samples: Samples, start: Start, seed: int, listener: Listener
) -> Opened:
    """Open a checkpoint, or build a new model where the user wants to start from one.

    Raises:
        UsageError: both are named, or neither.
    """
    check_start(checkpoint, start)
    if checkpoint is None:
        return open_new(source, samples, seed, listener)
    return open_model(checkpoint, source, samples, listener)


def check_start(checkpoint: str | None, start: Start) -> None:
    """Make sure that there is one thing to start from: a checkpoint, or a new model.

    Raises:
        UsageError: both are named, or neither.
    """
    if start.at_init and checkpoint is not None:
        raise UsageError(f"`--at-init` starts from a new model: leave out `{checkpoint}`, or `--at-init`.")
    if not start.at_init and checkpoint is None:
        raise UsageError("Name a checkpoint, or say `--at-init --spec SPEC` to start from a new model.")
    if not start.at_init and start.init != Start().init:
        raise UsageError(f"`--init {start.init}` is for new models: a checkpoint has its weights.")


def open_new(source: Source, samples: Samples, seed: int, listener: Listener) -> Opened:
    """Build a model with random parameters.

    Raises:
        UsageError: no spec is named.
        SpecError: it is malformed, or building the model failed.
    """
    if source.spec is None:
        raise UsageError("Say how to build the model: `--spec net.toml`, or `--spec torchvision:resnet18`.")
    if source.spec == AUTO:
        raise UsageError(
            "`--spec auto` tells a model by the tensors of its checkpoint, and a new model has none: name "
            "it, e.g. `--spec torchvision:resnet18`."
        )
    spec = read_spec(
        source.spec,
        spec_args=source.spec_arg,
        input=source.input,
        data=samples.data,
        train_data=samples.train_data,
        test_data=samples.test_data,
    )
    name = Path(source.spec).stem if source.spec.endswith(".toml") else source.spec.rpartition(":")[2]
    listener.note(f"{name}: a new model of `{spec.factory}`, seed {seed}")
    return Opened(name, spec, build_model(spec, seed=seed))


def parents_of(opened: Opened) -> Mapping[str, str]:
    """Return the digests of the files that a model made of this one descends from."""
    before = dict(opened.record.parents) if opened.record else {}
    own = {opened.name: opened.checkpoint.digest} if opened.checkpoint is not None else {}
    return {**before, **own}


def lineage_of(opened: Opened) -> dict[str, str]:
    """Return the same for the metadata of an ONNX file."""
    return {f"prunecli.parent.{name}": digest for name, digest in parents_of(opened).items()}
