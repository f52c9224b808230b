"""A model and its sample -> scores of its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from prunecli.data import loss_function as loss_of
from prunecli.errors import UsageError
from prunecli.graph.structure import Structure
from prunecli.importance import (
    About,
    Aggregate,
    Gate,
    Granularity,
    Journal,
    ScoreBN,
    Scores,
    build_methods,
    find_method,
    score,
)
from prunecli.importance.registry import Needs
from prunecli.pipeline.journal import DiskJournal
from prunecli.pipeline.listener import Listener
from prunecli.pipeline.opening import Opened
from prunecli.pipeline.processes import Processes
from prunecli.pipeline.running import Place, parse_bytes
from prunecli.pipeline.sampling import Sample, open_sample
from prunecli.pipeline.settings import Importance, Machine, Samples, Study, Weights
from prunecli.pipeline.versions import versions
from prunecli.spec import ModelSpec, to_json_dict
from prunecli.spec.code import code_digest
from prunecli.strict_json import Json

ORACLE = "oracle"

MEMORISED = 0.05
"""A mean cross-entropy below this is that of samples which a network has learnt by heart."""

_MEMORISED = (
    "The mean loss on this sample is {loss:.3f}: the network knows these samples by heart, and there first "
    "derivatives of the loss say little. Measure importance on samples that it was not trained on."
)

_FACTS = {"machine": "device, precision or seed", "units": "structure", "version": "version of a package"}
"""What conditions are called where processes differ in them; the others by their own names."""


def check_importance(importance: Importance, study: Study = Study()) -> None:  # noqa: B008 (frozen)
    """Refuse methods and arguments that nobody knows, before any file is opened.

    Raises:
        UsageError: naming the one that is wrong.
    """
    granularity = Granularity(importance.granularity)
    build_methods(_names(importance, study), arguments_of_method(importance), granularity)
    if study.shard and granularity is Granularity.UNIT:
        from prunecli.importance.sharding import refuse_unsharded

        refuse_unsharded(_names(importance, study))
    if study.against is not None and set(importance.method) == {study.against}:
        raise UsageError(
            f"`--against {study.against}` is the method itself. Add another `--method` to compare."
        )


def measure_scores(
    opened: Opened,
    importance: Importance,
    samples: Samples,
    machine: Machine,
    place: Place,
    listener: Listener,
    study: Study | None = None,
) -> dict[str, Scores]:
    """Score every unit by each method asked for, in one pass over the sample.

    Where the scores are studied against the oracle, both of its aggregates are there, `oracle (dataset-sq)`
    and `oracle (batch-abs)`, from one measurement: of what a cut does, so with gates behind normalisations
    that use their running statistics, wherever and however the scores are measured.

    Raises:
        UsageError: a method or one of its arguments is unknown.
        DataError: a method looks at data, and there is none.
    """
    study = study or Study()
    if study.shard:
        model, structure = _sharded(opened, place)
    else:
        model, structure = place.lend(opened.model), opened.structure
    others = [study.against] if study.against not in (None, ORACLE) else []
    names = tuple(dict.fromkeys((*importance.method, *others)))
    needing = next((name for name in _names(importance, study) if find_method(name).needs_data), None)
    memory = parse_bytes(machine.max_memory, "--max-memory")

    share = replace(place.processes.share(), is_parted=study.shard)
    agree(opened, importance, samples, machine, place, study)

    def scored(
        names: Sequence[str], arguments: Mapping[str, object], journal: Journal, gate: Gate, score_bn: ScoreBN
    ) -> dict[str, Scores]:
        sample = None
        if needing:
            sample = open_sample(
                opened, needing, samples, machine, place, model, share.rank, share.count, study.shard
            )
            note_idle(sample.batches_of_all, share.count, samples.batch_size, listener)
        found = score(
            model,
            structure,
            sample.stream if sample else None,
            loss_of(opened.spec),
            names,
            seed=machine.seed,
            micro_batch=samples.batch_size,
            method_args=arguments,
            fallback=importance.fallback,
            score_bn=score_bn,
            batch_count=sample.batch_count if sample else 0,
            memory=memory,
            gate=gate,
            progress=lambda stage, done, total: listener.progress(stage, done, total or None),
            journal=lambda key, find: journal(f"{gate.value}/{score_bn.value}/{key}", find),
            share=replace(share, order=sample.order if sample else None),
        )
        return {
            name: replace(each, about=annotated(each.about, sample, opened)) for name, each in found.items()
        }

    arguments = arguments_of_method(importance)
    with (
        place.processes.explaining_inside(),
        _journal(opened, importance, samples, machine, place, study, listener) as journal,
    ):
        scores = scored(names, arguments, journal, Gate(study.gate), ScoreBN(importance.score_bn))
        if study.against == ORACLE:
            for aggregate in Aggregate:
                label = f"{ORACLE} ({aggregate.value})"
                found = scored([ORACLE], {"aggregate": aggregate}, journal, Gate.AFTER_BN, ScoreBN.EVAL)
                scores[label] = found[ORACLE]
    return scores


def check_shard(processes: Processes, machine: Machine) -> None:
    """Refuse to part a network among no others, or among more processes than GPUs.

    Raises:
        UsageError: naming what is missing.
    """
    if not processes.are_several:
        raise UsageError(
            "`--shard` parts a network among processes, and there is one. Start several: `torchrun "
            "--nproc-per-node 2 -m prunecli score ...`."
        )
    gpus = torch.cuda.device_count()
    if machine.device != "cpu" and 0 < gpus < processes.local_count:
        raise UsageError(
            f"`--shard` needs a GPU for each process, and {processes.local_count} processes share {gpus}. "
            "Start fewer, or add `--device cpu`."
        )


def _sharded(opened: Opened, place: Place) -> tuple[nn.Module, Structure]:
    """Return the network parted among all processes, and its structure."""
    from prunecli.importance.sharding import shard  # torch's part for this takes long to import

    return shard(opened.model, opened.structure, place.device, place.dtype_of(opened.model))


def _journal(
    opened: Opened,
    importance: Importance,
    samples: Samples,
    machine: Machine,
    place: Place,
    study: Study,
    listener: Listener,
) -> AbstractContextManager[Journal]:
    """Return where what takes long is kept; methods that are fast keep nothing.

    What a look finds is kept with a digest of its samples, so that these need no mention here.
    """
    if not any(Needs.LOSSES in find_method(name).needs for name in _names(importance, study)):
        return nullcontext(lambda key, find: find())
    conditions = _conditions(opened, samples, machine, place)
    if place.processes.are_several:
        conditions["process"] = [place.processes.rank, place.processes.count]
    return DiskJournal(conditions, listener)


def _conditions(opened: Opened, samples: Samples, machine: Machine, place: Place) -> dict[str, Json]:
    """Return what findings about a model depend on, whichever method looks at it."""
    spec = opened.spec
    return {
        "checkpoint": opened.checkpoint.digest if opened.checkpoint is not None else "new",
        "spec": to_json_dict(spec),
        "code": digests_of_code(spec),
        "samples": [samples.samples, samples.batch_size],
        "machine": [place.device.type, str(place.dtype), machine.seed],
        "units": {group.name: group.width for group in opened.structure.groups},
        "version": versions(),
    }


def digests_of_code(spec: ModelSpec) -> dict[str, Json]:
    """Return what tells the user's own code from other code of the same name."""
    return {text: code_digest(spec, text) for text in (spec.factory, spec.task.loss) if ":" in text}


def agree(
    opened: Opened,
    importance: Importance,
    samples: Samples,
    machine: Machine,
    place: Place,
    more: Study | Weights,
) -> None:
    """Make sure that all processes which share the work score the same, in the same way.

    Raises:
        InputError: they do not.
        PeerError: another process failed.
    """
    if not place.processes.are_several:
        return
    conditions = _conditions(opened, samples, machine, place)
    facts = {_FACTS.get(name, name): fact for name, fact in conditions.items()}
    place.processes.agree({**facts, "method": [str(importance), str(more)]})


def note_idle(batches: int, processes: int, size: int, listener: Listener) -> None:
    """Say so where there are fewer batches than processes."""
    if batches < processes:
        listener.note(
            f"{batches} batches of {size} samples for {processes} processes: "
            f"{processes - batches} have nothing to score"
        )


def _names(importance: Importance, study: Study) -> tuple[str, ...]:
    """Return the methods, the one they are compared with, and the one they fall back on."""
    others = [name for name in (study.against, importance.fallback) if name]
    return tuple(dict.fromkeys((*importance.method, *others)))


def arguments_of_method(importance: Importance) -> dict[str, str]:
    """Return what `--method-arg` says, by name."""
    return dict(split_argument(text, "--method-arg") for text in importance.method_arg)


def split_argument(text: str, option: str) -> tuple[str, str]:
    """Take `NAME=VALUE` apart.

    Raises:
        UsageError: there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        table = "schedules" if option == "--schedule-arg" else "methods"
        raise UsageError(f"`{option} {text}`: write NAME=VALUE. `prunecli {table} NAME` lists the names.")
    return name.strip().replace("-", "_"), value.strip()


def annotated(about: About, sample: Sample | None, opened: Opened) -> About:
    """Say which samples scores were measured on, if they were, and if that was unwise."""
    if sample is None or not about.samples:
        return about
    notes = about.notes
    if opened.spec.task.loss == "cross-entropy" and about.loss is not None and about.loss < MEMORISED:
        notes = (*notes, _MEMORISED.format(loss=about.loss))
    return replace(about, sample=sample.source, sample_digest=sample.digest, notes=notes)
