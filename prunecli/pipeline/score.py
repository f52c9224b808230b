"""The story of `score`: a checkpoint and a sample -> the importance of every unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunecli.errors import UsageError
from prunecli.export.files import check_free, write_files
from prunecli.importance import Agreement, Scores, agreement
from prunecli.pipeline.idle import refuse_idle_in_study
from prunecli.pipeline.listener import Listener, Silent
from prunecli.pipeline.masking import with_weight_settings
from prunecli.pipeline.opening import open_model
from prunecli.pipeline.presets import fill, find_preset
from prunecli.pipeline.processes import ALONE, Processes
from prunecli.pipeline.running import parse_bytes, running_on
from prunecli.pipeline.scoring import check_importance, check_shard, measure_scores
from prunecli.pipeline.settings import Choices, Importance, Machine, Samples, Source, Study
from prunecli.pipeline.weighing import measure_weights, prunes_weights


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores by method, and the files they were written to."""

    checkpoint: str
    scores: Mapping[str, Scores]
    agreements: tuple[Agreement, ...] = ()
    """How far each method agrees with the one it was compared with; with both aggregates of an oracle."""
    files: tuple[Path, ...] = ()


def score(
    checkpoint: str,
    source: Source | None = None,
    samples: Samples | None = None,
    importance: Importance | None = None,
    study: Study | None = None,
    machine: Machine | None = None,
    out: str | None = None,
    force: bool = False,
    listener: Listener | None = None,
    given: frozenset[str] = frozenset(),
    processes: Processes = ALONE,
) -> Scored:
    """Score the units of a checkpoint by one or several methods.

    Args:
        checkpoint: the parameters.
        source: how the model is built.
        samples: what importance is measured on.
        importance: which methods.
        study: what they are compared with.
        machine: where it runs.
        out: a .safetensors file to write; with several methods, one file each, NAME.METHOD.safetensors.
        force: replace files that are there.
        listener: hears of progress.
        given: the options that were given, as fields are called, even if their values are the defaults.
        processes: those that share the work; all but the first end where the scores are there.

    Raises:
        Dismissed: this process has done its part, and is not the first.
    """
    source, samples, importance = source or Source(), samples or Samples(), importance or Importance()
    asked = importance
    importance = fill(asked, find_preset(asked.preset).get("importance", {}), given)
    if prunes_weights(importance):
        importance = with_weight_settings(Choices(importance=importance, given=given)).importance
    study, machine, listener = study or Study(), machine or Machine(), listener or Silent()
    check_importance(importance, study)
    refuse_idle_in_study(importance, asked, study, given)
    parse_bytes(machine.max_memory, "--max-memory")
    paths = _paths(out, importance.method)
    check_free(paths.values(), force)
    if study.shard:
        check_shard(processes, machine)
    opened = open_model(checkpoint, source, samples, listener, is_bare=study.shard)
    with running_on(machine, listener, processes) as place:
        if prunes_weights(importance):
            choices = Choices(importance=importance, samples=samples, machine=machine, given=given)
            scores = measure_weights(opened, choices, place, listener, study.against)
        else:
            scores = measure_scores(opened, importance, samples, machine, place, listener, study)
    processes.dismiss_others()
    agreements = _agreements(scores, importance, study)
    write_files({path: scores[method].to_bytes() for method, path in paths.items()}, force)
    shown = {name: scores[name] for name in importance.method}
    return Scored(opened.name, shown, agreements, tuple(paths.values()))


def _agreements(scores: Mapping[str, Scores], importance: Importance, study: Study) -> tuple[Agreement, ...]:
    """Compare each method with what it is studied against."""
    if study.against is None:
        return ()
    references = [name for name in scores if name.startswith(f"{study.against} (")] or [study.against]
    return tuple(
        agreement(scores[name], scores[reference], reference)
        for reference in references
        for name in importance.method
        if name != study.against
    )


def _paths(out: str | None, methods: tuple[str, ...]) -> dict[str, Path]:
    """Return where the scores of each method go."""
    if out is None:
        return {}
    path = Path(out)
    if path.suffix != ".safetensors":
        raise UsageError(f"`--out {out}`: scores are safetensors. Name a file that ends in .safetensors.")
    if len(methods) == 1:
        return {methods[0]: path}
    return {method: path.with_suffix(f".{method}.safetensors") for method in methods}
