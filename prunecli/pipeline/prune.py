"""The story of `prune`: checkpoint -> scores -> plan -> smaller model -> proof -> files and report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from prunecli.export.files import check_free, write_files
from prunecli.export.to_onnx import OnnxModel, to_onnx
from prunecli.export.to_safetensors import to_bytes
from prunecli.model import example_inputs
from prunecli.parity import Parity, verify
from prunecli.pipeline.deciding import check_choices, decide
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.measuring import measure_accuracy
from prunecli.pipeline.opening import lineage_of, open_model
from prunecli.pipeline.paths import Paths, choose_paths
from prunecli.pipeline.presets import with_preset
from prunecli.pipeline.recovering import Measure, check_sample, recover
from prunecli.pipeline.running import Place, float_dtype, running_on
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.telling import Checked, Cut, make_record, make_report
from prunecli.plan import Plan
from prunecli.report import ParityCheck, Report
from prunecli.surgery import apply_plan


@dataclass(frozen=True, eq=False)
class Pruned:
    """The smaller model, what was decided, what is said of it, and the files written."""

    model: nn.Module
    plan: Plan
    report: Report
    files: tuple[Path, ...]


def prune(checkpoint: str, choices: Choices | None = None, listener: Listener | None = None) -> Pruned:
    """Make a checkpoint smaller. Nothing is written before everything is proven, and then all or nothing.

    Raises:
        UsageError: choices contradict each other, or a method is unknown.
        InputError: a file is bad, unsafe, or does not match the others.
        OutputError: a file is there already, or cannot be written.
        NotPrunableError: the model cannot be pruned as asked.
        ProofError: the smaller model, or its ONNX file, computes something else.
    """
    choices, listener = with_preset(choices or Choices()), listener or Silent()
    check_choices(choices)
    paths = choose_paths(Path(checkpoint), choices)
    check_free(paths.wanted, choices.files.force)
    opened = open_model(checkpoint, choices.source, choices.samples, listener)
    check_sample(opened, choices)
    with running_on(choices.machine, listener) as place:
        plan, scores = decide(opened, choices, place, listener)
        listener.progress("cutting", 0, None)
        cut = Cut(opened, plan, scores, apply_plan(opened.model, opened.structure, plan))
        smaller, contents, report = _finish(cut, paths, choices, place, listener)
    write_files(contents, choices.files.force)
    return Pruned(smaller, plan, report, tuple(contents))


def _finish(
    cut: Cut, paths: Paths, choices: Choices, place: Place, listener: Listener
) -> tuple[nn.Module, dict[Path, bytes], Report]:
    """Prove, recover, measure and export; return the model, the content of every file, and the report."""
    contents: dict[Path, bytes] = {}
    checked = Checked()
    if paths.model is not None:
        parity = prove(cut, listener) if choices.files.verify else None
        checks, notes = (checks_of(parity), parity.notes) if parity else ((), ())
        measure = measuring(cut, choices, place, listener)
        cut, recovery = recover(cut, choices, place, listener, measure)
        accuracy = (measure(cut.opened.model, "accuracy before"), measure(cut.smaller, "accuracy after"))
        contents[paths.model] = to_bytes(cut.smaller, make_record(cut, paths.model.parent, checks))
        onnx = export_onnx(cut, listener) if paths.onnx is not None else None
        if paths.onnx is not None and onnx is not None:
            contents[paths.onnx] = onnx.content
        checked = Checked(checks, notes, accuracy, recovery, onnx.check if onnx else None)
    if paths.plan is not None:
        contents[paths.plan] = cut.plan.to_json().encode()
    report = make_report(cut, checked, contents, place.device.type)
    if paths.report is not None:
        contents[paths.report] = report.to_json().encode()
    return cut.smaller, contents, report


def prove(cut: Cut, listener: Listener) -> Parity:
    """Compare the smaller model with the masked dense one, on two samples.

    Raises:
        ProofError: they differ.
    """
    listener.progress("proving", 0, None)
    args, kwargs = example_inputs(cut.opened.spec, batch=2, dtype=float_dtype(cut.opened.model))
    return verify(cut.opened.model, cut.smaller, cut.opened.structure, cut.plan, args, kwargs)


def checks_of(parity: Parity) -> tuple[ParityCheck, ...]:
    """Return the two checks of a proof as a report shows them."""
    return (
        ParityCheck("structure", parity.structure_error, parity.structure_limit, parity.structure_dtype),
        ParityCheck("numbers", parity.numbers_error, parity.numbers_limit, parity.numbers_dtype),
    )


def measuring(cut: Cut, choices: Choices, place: Place, listener: Listener) -> Measure:
    """Return what measures a model on the test data, where there is any; it takes a model and a stage."""
    return partial(
        measure_accuracy,
        cut.opened,
        samples=choices.samples,
        machine=choices.machine,
        place=place,
        listener=listener,
    )


def export_onnx(cut: Cut, listener: Listener) -> OnnxModel:
    """Export to ONNX and run it in onnxruntime, with a note in it of where it comes from."""
    listener.progress("exporting to ONNX", 0, None)
    inputs = partial(example_inputs, cut.opened.spec)
    return to_onnx(
        cut.smaller, inputs, lineage={"prunecli.method": cut.plan.method, **lineage_of(cut.opened)}
    )
