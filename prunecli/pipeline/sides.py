"""A path to compare, a checkpoint or an ONNX file -> what is known of it, and how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from prunecli.costs import describe
from prunecli.errors import CheckpointError, ExportError, InputError, ProofError, UsageError
from prunecli.export.from_onnx import OnnxFile, OnnxModule, describe_onnx, is_onnx, read_onnx
from prunecli.export.to_onnx import Inputs, to_onnx
from prunecli.export.unfinished import finish_renames
from prunecli.model import example_inputs
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened, open_model, parents_of
from prunecli.pipeline.running import float_dtype
from prunecli.pipeline.settings import Samples, Source
from prunecli.report import ModelFacts, Report
from prunecli.spec import ModelSpec, read_spec
from prunecli.spec.hugging_face import is_folder
from prunecli.strict_json import Json
from prunecli.whole_file import read_whole

_MOST_REPORT = 64 * 2**20
"""Bytes of a report that may stand beside a file."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the files put side by side."""

    name: str
    """The file's name; where another has the same one, with as many of its folders as tell them apart."""
    path: Path
    digest: str
    bytes: int
    opened: Opened | None
    """The model; None of an ONNX file."""
    onnx: OnnxFile | None
    """None of a checkpoint."""
    spec: ModelSpec | None
    """None of ONNX files alone, if the user named no spec."""

    @property
    def read_as(self) -> str:
        """How the file was read."""
        return self.opened.read_as if self.opened is not None else "ONNX"

    @cached_property
    def facts(self) -> ModelFacts:
        """Its layers and costs."""
        if self.onnx is not None:
            return describe_onnx(self.onnx, example_inputs(self.spec) if self.spec is not None else None)
        assert self.opened is not None
        return describe(self.opened.model, *self.opened.example)

    @property
    def method(self) -> dict[str, Json]:
        """What was asked for when it was pruned."""
        if self.onnx is not None:
            name = self.onnx.metadata.get("prunecli.method")
            return {"method": name} if name else {}
        assert self.opened is not None
        return dict(self.opened.record.method) if self.opened.record else {}

    @property
    def parents(self) -> dict[str, str]:
        """The files that it was made from: name -> digest."""
        if self.onnx is not None:
            return self.onnx.parents
        assert self.opened is not None
        own = {self.opened.name: self.digest}
        return {name: digest for name, digest in parents_of(self.opened).items() if own.get(name) != digest}

    def in_onnxruntime(self, threads: int) -> OnnxModule:
        """Return the model as onnxruntime runs it; a checkpoint is exported for that.

        Raises:
            ExportError: it cannot be exported.
            ProofError: what was exported computes something else.
            CheckpointError: onnxruntime cannot run the file.
        """
        if self.onnx is not None:
            return OnnxModule(self.path.read_bytes(), threads)
        assert self.opened is not None
        made = to_onnx(self.opened.model, partial(example_inputs, self.opened.spec))
        return OnnxModule(made.whole, threads)

    @cached_property
    def report(self) -> Report | None:
        """The report beside the file that tells of just this file; None where there is none."""
        beside = self.path.with_suffix(".json")
        try:
            if self.path.is_dir():
                return None
            report = Report.from_json(read_whole(beside, _MOST_REPORT).decode("utf-8"), beside.name)
        except (OSError, UnicodeDecodeError, InputError):  # none, or something else of that name
            return None
        return report if any(file.sha256 == self.digest for file in report.files) else None


def open_all(paths: Sequence[str], source: Source, samples: Samples, listener: Listener) -> list[Side]:
    """Open files to compare: checkpoints with the spec of the first, Hugging Face folders as they say.

    Raises:
        UsageError: fewer than two are named.
        SpecError: there is no spec, or building the model failed.
        CheckpointError: a file cannot be read.
    """
    if len(paths) < 2:
        raise UsageError("Name two files or more: the dense checkpoint first, the smallest last.")
    for path in paths:
        finish_renames(Path(path).parent)
    opened: dict[int, Opened] = {}
    spec: ModelSpec | None = None
    for i, path in enumerate(paths):
        if not is_onnx(path):
            opened[i] = _open(path, source, samples, listener, spec)
            spec = spec or opened[i].spec
    if spec is None and source.spec is not None:
        spec = read_spec(
            source.spec,
            spec_args=source.spec_arg,
            input=source.input,
            data=samples.data,
            test_data=samples.test_data,
        )
    return [_side(name, paths[i], opened.get(i), spec) for i, name in enumerate(tell_apart(paths))]


def tell_apart(paths: Sequence[str]) -> list[str]:
    """Return a name for each path: the file's, with folders before it or a number behind it if it must be.

    >>> tell_apart(["net.pt", "a/net.pruned.pt", "b/net.pruned.pt", "net.pt"])
    ['net.pt', 'a/net.pruned.pt', 'b/net.pruned.pt', 'net.pt (2)']
    """
    parts = [
        [part for part in Path(path).parts if part not in ("/", "..", Path(path).anchor)] for path in paths
    ]
    counts = [1] * len(paths)
    while True:
        names = ["/".join(own[-count:]) for own, count in zip(parts, counts, strict=True)]
        alike = [
            i
            for i, name in enumerate(names)
            if counts[i] < len(parts[i])
            and any(name == other and parts[i] != parts[j] for j, other in enumerate(names))
        ]
        if not alike:
            break
        for i in alike:
            counts[i] += 1
    return [
        f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)
    ]


def timed_inputs(one: Side, running: OnnxModule | nn.Module, batch: int) -> Inputs:
    """Return a made-up batch: as the spec says, or else as the ONNX file asks for."""
    if one.spec is not None:
        return example_inputs(one.spec, batch, dtype=float_dtype(running))
    assert isinstance(running, OnnxModule)
    return (), running.made_up(batch)


def explain(error: CheckpointError | ExportError | ProofError) -> str:
    """Return why a model has no figures of onnxruntime."""
    return str(error).replace(" Leave the file out with `--no-onnx`.", "")


def _open(path: str, source: Source, samples: Samples, listener: Listener, first: ModelSpec | None) -> Opened:
    """Open one checkpoint. A folder with a configuration of its own is judged as the first is."""
    if first is None or not is_folder(Path(path)):
        return open_model(path, source, samples, listener, spec=first)
    own = replace(source, spec=f"hf:{path}", spec_arg=())
    opened = open_model(path, own, samples, listener)
    return replace(opened, spec=replace(first, factory=opened.spec.factory, args=opened.spec.args))


def _side(name: str, path: str, opened: Opened | None, spec: ModelSpec | None) -> Side:
    if opened is not None:
        file = opened.file
        return Side(name, file.path, file.digest, file.bytes, opened, None, opened.spec)
    onnx = read_onnx(path)
    return Side(name, onnx.path, onnx.digest, onnx.bytes, None, onnx, spec)
