"""A smaller or trained model -> proof, accuracy, ONNX, and the content of every file and of the report."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from prunecli.errors import ProofError
from prunecli.export.files import Content
from prunecli.export.precision import describe_precisions, narrowed
from prunecli.export.to_onnx import OnnxModel, to_onnx
from prunecli.export.to_safetensors import to_bytes, to_stream
from prunecli.give_back import give_back
from prunecli.graph.copying import named_tensors
from prunecli.model import example_inputs
from prunecli.parity import Parity, is_large, verify
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.measuring import Judge
from prunecli.pipeline.opening import lineage_of
from prunecli.pipeline.paths import Paths
from prunecli.pipeline.recovering import recover, recovery_notices
from prunecli.pipeline.running import Place, float_dtype
from prunecli.pipeline.settings import Choices
from prunecli.pipeline.telling import Checked, Cut, make_record, make_report, with_lasting_masks
from prunecli.report import ParityCheck, Report
from prunecli.surgery import apply_plan
from prunecli.weights.masked import check_masked, with_masks
from prunecli.weights.patterns import check_semi_structured


def finish(
    cut: Cut, paths: Paths, choices: Choices, place: Place, listener: Listener
) -> tuple[Cut, dict[Path, Content], Report]:
    """Prove, recover, measure and export; return what it came to, the content of every file, and the report.

    What is written of a model cannot be run again: then of the dense one only shapes are left.

    Raises:
        ProofError: the smaller model, or its ONNX file, computes something else than it should.
    """
    contents: dict[Path, Content] = {}
    checked = Checked()
    if paths.model is not None:
        parity = prove(cut, listener) if choices.files.verify else None
        give_back()
        checks, notes = (checks_of(parity), parity.notes) if parity else ((), ())
        measure = Judge(cut.opened, choices.samples, choices.machine, place, listener).accuracy
        cut, recovery = recover(cut, choices, place, listener, measure)
        cut = _with_lasting_masks(cut, listener)
        before = measure(cut.opened.model, "accuracy before") if cut.opened.checkpoint else None
        accuracy = (before, measure(cut.smaller, "accuracy after"))
        warnings = recovery_notices(recovery, cut.smaller, accuracy[1], measure) if recovery else ()
        for notice in warnings:
            listener.warn(notice.text)
        cut.opened.forget_weights()
        onnx = export_onnx(cut, listener) if paths.onnx is not None else None
        give_back()
        listener.progress("packing", 0, None)
        narrow = narrowed(cut.smaller, cut.opened.came_in) if cut.training is None else {}
        record = make_record(cut, paths.model.parent, checks, recovery)
        pack = to_stream if choices.memory.streaming or is_large(cut.smaller) else to_bytes
        contents[paths.model] = pack(cut.smaller, record, narrow)
        if paths.onnx is not None and onnx is not None:
            contents[paths.onnx] = onnx.content
        check = onnx.check if onnx else None
        checked = Checked(
            *(checks, notes, accuracy, recovery, warnings, check, _check_pattern(cut)),
            stored_as=describe_precisions(cut.smaller, narrow),
        )
    listener.progress("reporting", 0, None)
    if paths.plan is not None and cut.plan is not None:
        contents[paths.plan] = cut.plan.to_json().encode()
    report = make_report(cut, checked, contents, place.device.type)
    if paths.report is not None:
        contents[paths.report] = report.to_json().encode()
    return cut, contents, report


def _check_pattern(cut: Cut) -> str | None:
    """Say whether torch's kernels for 2:4 take the weights, where that was the pattern."""
    pattern = cut.masking.selection.pattern if cut.masking is not None else None
    if pattern is None or pattern.text != "2:4" or cut.masks is None:
        return None
    return check_semi_structured(cut.smaller, cut.masks)


def _with_lasting_masks(cut: Cut, listener: Listener) -> Cut:
    lasting = with_lasting_masks(cut)
    for notice in lasting.notices[len(cut.notices) :]:
        listener.warn(notice.text)
    return lasting


def prove(cut: Cut, listener: Listener) -> Parity | None:
    """Compare the smaller model with the masked dense one, on two samples; None where no unit left.

    Where weights are masked, the model must have zeros there, and be the dense one elsewhere, bit for bit.

    A model that was trained on has other weights by now: the proof is of the same cut of the dense model,
    and the trained one must have its tensors, name by name and shape by shape.

    Raises:
        ProofError: they differ.
    """
    dense = cut.opened.model
    if cut.masking is not None and cut.training is None:
        dense = with_masks(cut.opened.model, cut.masking.masks)
        if cut.plan is None:
            check_masked(cut.opened.model, cut.smaller, cut.masking.masks)
    if cut.plan is None:
        return None
    listener.progress("proving", 0, None)
    args, kwargs = example_inputs(cut.opened.spec, batch=2, dtype=float_dtype(cut.opened.model))
    smaller = cut.smaller
    if cut.training is not None:
        smaller = apply_plan(dense, cut.opened.structure, cut.plan)
        shapes, expected = (
            {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
            for model in (cut.smaller, smaller)
        )
        if shapes != expected:
            name = next(name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name))
            raise ProofError(
                f"`{name}` is {shapes.get(name)} in the trained model, and the plan makes it "
                f"{expected.get(name)}. This is a bug in prunecli; `--no-verify` writes the model anyway."
            )
    return verify(dense, smaller, cut.opened.structure, cut.plan, args, kwargs)


def checks_of(parity: Parity) -> tuple[ParityCheck, ...]:
    """Return the two checks of a proof as a report shows them."""
    return (
        ParityCheck("structure", parity.structure_error, parity.structure_limit, parity.structure_dtype),
        ParityCheck("numbers", parity.numbers_error, parity.numbers_limit, parity.numbers_dtype),
    )


def export_onnx(cut: Cut, listener: Listener) -> OnnxModel:
    """Export to ONNX and run it in onnxruntime, with a note in it of where it comes from."""
    listener.progress("exporting to ONNX", 0, None)
    inputs = partial(example_inputs, cut.opened.spec)
    method = {"prunecli.method": cut.plan.method} if cut.plan is not None else {}
    return to_onnx(cut.smaller, inputs, lineage={**method, **lineage_of(cut.opened)})
