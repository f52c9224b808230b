"""Files side by side, checkpoints and ONNX -> what changed between them, and figures of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from prunecli.errors import CheckpointError, ExportError, ProofError
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.measuring import Judge
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.report_settings import Latency
from prunecli.pipeline.running import Place, running_on
from prunecli.pipeline.settings import Machine, Samples, Source
from prunecli.pipeline.sides import Side, explain, open_all, timed_inputs
from prunecli.pipeline.timing import time_in_turns, torch_runner
from prunecli.pipeline.versions import versions
from prunecli.report import (
    Accuracy,
    ComparedModel,
    Environment,
    LatencyFacts,
    MaskFacts,
    ModelFacts,
    Notice,
    ParityCheck,
    Report,
    Timing,
    compare,
    mask_facts,
)
from prunecli.strict_json import FieldError, from_plain
from prunecli.weights.masked import kept_counts

ON_CPU = Place(torch.device("cpu"), None)
"""Where onnxruntime runs."""


def compare_checkpoints(
    paths: Sequence[str],
    source: Source | None = None,
    samples: Samples | None = None,
    machine: Machine | None = None,
    listener: Listener | None = None,
    *,
    timed: Latency | None = None,
) -> Report:
    """Put files side by side: checkpoints, pruned or not, and ONNX files.

    Args:
        paths: the dense one first, the smallest last; checkpoints are built with the spec of the first.
        source: how the model is built.
        samples: overrides of the data in the spec.
        machine: where accuracy and latency are measured.
        listener: hears of progress.
        timed: measure latency so.

    Returns:
        What changed from the first to the last, and figures of each. Scores, training and recovery are those
        that a report beside one of the files tells of.
    """
    source, samples = source or Source(), samples or Samples()
    machine, listener = machine or Machine(), listener or Silent()
    found = open_all(paths, source, samples, listener)
    with running_on(machine, listener) as place:
        models = [_told(one, _accuracy(one, samples, machine, place, listener)) for one in found]
        notices: list[Notice] = []
        if timed is not None:
            models, notices = _timed(found, models, timed, place, listener)
    first, last = found[0], found[-1]
    line = {last.digest, *last.parents.values()}  # a sibling's scores are not those that it was cut by
    told = [one.report for one in reversed(found) if one.digest in line and one.report is not None]
    ours = last.report
    test = first.spec.data.test if first.spec else None
    return compare(
        first.facts,
        last.facts,
        masks=_masks(last.opened, last.facts) if last.opened is not None else None,
        title=" -> ".join(one.name for one in found),
        accuracy=(models[0].accuracy, models[-1].accuracy),
        parity=_parity(last.opened) if last.opened is not None else (),
        recovery=ours.recovery if ours else None,
        training=ours.training if ours else None,
        scores=next((report.scores for report in told if report.scores), None),
        models=models,
        latency=_latency_facts(timed, place) if timed is not None else None,
        settings=last.method,
        random_data=(test or "").startswith("random:"),
        warnings=[*_strangers(models), *notices],
        environment=Environment(place.device.type, versions()),
    )


def _strangers(models: Sequence[ComparedModel]) -> Iterator[Notice]:
    """Yield a notice of each file that says where it came from, and that is not from the first one."""
    first = models[0]
    for model in models[1:]:
        if model.parents and first.sha256 not in model.parents.values():
            yield Notice(
                "lineage",
                f"{model.name} was not made from this {first.name}: it names {', '.join(model.parents)} "
                f"with {'other digests' if len(model.parents) > 1 else 'another digest'}.",
            )


def _told(one: Side, accuracy: Accuracy | None) -> ComparedModel:
    return ComparedModel(
        name=one.name,
        read_as=one.read_as,
        sha256=one.digest,
        file_bytes=one.bytes,
        facts=one.facts,
        accuracy=accuracy,
        method=one.method,
        parents=one.parents,
    )


def _accuracy(
    one: Side, samples: Samples, machine: Machine, place: Place, listener: Listener
) -> Accuracy | None:
    """Measure a model on test data, where it is known; ONNX files run on the CPU."""
    if one.spec is None or one.spec.data.test is None:
        return None
    if one.opened is not None:
        return Judge(one.opened, samples, machine, place, listener).accuracy(
            one.opened.model, f"accuracy of {one.name}"
        )
    model = one.in_onnxruntime(torch.get_num_threads())
    judge = Judge(Opened(one.name, one.spec, model), samples, machine, ON_CPU, listener)
    return judge.accuracy(model, f"accuracy of {one.name}")


def _timed(
    found: Sequence[Side],
    models: Sequence[ComparedModel],
    timed: Latency,
    place: Place,
    listener: Listener,
) -> tuple[list[ComparedModel], list[Notice]]:
    """Return the models with their latencies, and notices of what could not be timed."""
    notices: list[Notice] = []
    threads = torch.get_num_threads()
    runners: dict[tuple[str, int], Callable[[], object]] = {}
    for i, one in enumerate(found):
        if one.opened is not None:
            lent = place.lend(one.opened.model)
            inputs = timed_inputs(one, lent, timed.batch)
            runners["pytorch", i] = torch_runner(lent, inputs, place.device)
        listener.note(f"{one.name}: preparing it for onnxruntime")
        try:
            session = one.in_onnxruntime(threads)
        except (CheckpointError, ExportError, ProofError) as error:
            notices.append(Notice("latency", f"{one.name}: no latency in onnxruntime. {explain(error)}"))
            continue
        inputs = timed_inputs(one, session, timed.batch)
        runners["onnxruntime", i] = torch_runner(session, inputs, ON_CPU.device)
    times: dict[tuple[str, int], Timing] = {}
    for runtime in ("pytorch", "onnxruntime"):
        own = [key for key in runners if key[0] == runtime]
        times |= zip(own, time_in_turns([runners[key] for key in own], timed.runs, listener), strict=True)
    return [
        replace(model, pytorch=times.get(("pytorch", i)), onnxruntime=times.get(("onnxruntime", i)))
        for i, model in enumerate(models)
    ], notices


def _latency_facts(timed: Latency, place: Place) -> LatencyFacts:
    return LatencyFacts(timed.batch, timed.runs, place.device.type, torch.get_num_threads())


def _masks(opened: Opened, facts: ModelFacts) -> MaskFacts | None:
    """Return what is left of the weights, where the file says that some were pruned one by one."""
    if opened.masks is None or opened.record is None:
        return None
    asked = opened.record.method
    name, _, ratio = str(asked.get("budget", "")).partition("=")
    return mask_facts(
        kept_counts(opened.masks),
        facts,
        ratio=float(ratio) if name == "ratio" and "granularity" in asked else None,
        base=str(asked.get("ratio_base", "whole")),
        pattern=str(asked["pattern"]) if "pattern" in asked else None,
    )


def _parity(opened: Opened) -> tuple[ParityCheck, ...]:
    """Return the proof that the file carries."""
    checks = (opened.record.parity if opened.record else None) or ()
    try:
        return tuple(from_plain(ParityCheck, check) for check in checks)
    except FieldError as error:
        raise CheckpointError(f"`{opened.file.path}`: metadata field parity {error}.") from None
