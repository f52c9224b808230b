"""What was cut -> what its files say of it: the record inside the model file, and the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from prunecli.costs import describe
from prunecli.export.record import PrunedRecord, write_sizes
from prunecli.graph.cutting import attribute_values
from prunecli.graph.structure import Kept
from prunecli.importance import Scores
from prunecli.pipeline.opening import Opened, parents_of
from prunecli.pipeline.versions import versions
from prunecli.plan import Constraints, Plan
from prunecli.report import (
    Accuracy,
    Change,
    Environment,
    Notice,
    OnnxCheck,
    ParityCheck,
    Recovery,
    Report,
    TrainingFacts,
    WrittenFile,
    compare,
)
from prunecli.spec import to_json_dict
from prunecli.spec.rebase import rebase
from prunecli.strict_json import Json, to_plain

_NOT_ASKED = ("method", "notes", "fallbacks", "seed")
"""What is known of scores, but was not asked for, or is shown in another place."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A model, the decision, and the smaller model."""

    opened: Opened
    plan: Plan | None
    """None where no unit left: a model that was only trained."""
    scores: Scores | None
    """What the plan follows; None where it was made elsewhere."""
    smaller: nn.Module
    training: TrainingFacts | None = None
    """How it was trained, if it was."""
    notices: tuple[Notice, ...] = ()
    """What the user should know of how it came about."""


@dataclass(frozen=True)
class Checked:
    """What was found out about the smaller model before anything is written."""

    parity: tuple[ParityCheck, ...] = ()
    parity_notes: tuple[str, ...] = ()
    accuracy: tuple[Accuracy | None, Accuracy | None] = (None, None)
    recovery: Recovery | None = None
    warnings: tuple[Notice, ...] = ()
    onnx: OnnxCheck | None = None


def make_record(
    cut: Cut, folder: Path, parity: tuple[ParityCheck, ...], recovery: Recovery | None = None
) -> PrunedRecord:
    """Return what a file in `folder` says of itself. A model pruned before keeps the sizes set then."""
    before = cut.opened.record or PrunedRecord()
    if cut.plan is None:
        return replace(
            before,
            spec=to_json_dict(rebase(cut.opened.spec, folder)),
            parents=parents_of(cut.opened),
            versions=versions(),
        )
    return PrunedRecord(
        spec=to_json_dict(rebase(cut.opened.spec, folder)),
        attributes=sizes_of(cut.opened, cut.plan.kept(), cut.smaller),
        rewritten={**before.rewritten, **cut.opened.structure.rewritten},
        plan=to_plain(cut.plan),
        method=settings_of(cut, recovery),
        parents=parents_of(cut.opened),
        parity=to_plain(parity) if parity else None,
        versions=versions(),
    )


def sizes_of(opened: Opened, kept: Kept, smaller: nn.Module) -> dict[str, dict[str, Json]]:
    """Return the sizes that a file sets in modules: those of an earlier pruning, and those of this one."""
    before = opened.record.attributes if opened.record is not None else {}
    sizes = write_sizes(attribute_values(opened.structure, kept, smaller))
    return {name: {**before.get(name, {}), **sizes.get(name, {})} for name in (*before, *sizes)}


def make_report(cut: Cut, checked: Checked, contents: Mapping[Path, bytes], device: str) -> Report:
    """Put the two models side by side."""
    notes = cut.scores.about.notes if cut.scores else ()
    data = cut.opened.spec.data
    sources = (
        cut.scores.about.sample if cut.scores else None,
        data.test,
        data.train if cut.training else None,
    )
    cut_groups = cut.opened.structure.groups if cut.plan is not None else ()
    return compare(
        describe(cut.opened.model, *cut.opened.example),
        describe(cut.smaller, *cut.opened.example),
        title=cut.opened.name,
        units=Change(cut.plan.unit_count, cut.plan.kept_count) if cut.plan is not None else None,
        accuracy=checked.accuracy,
        parity=checked.parity,
        recovery=checked.recovery,
        training=cut.training,
        onnx=checked.onnx,
        files=[_written(path, content) for path, content in contents.items()],
        settings=settings_of(cut, checked.recovery),
        statistics_changed=[
            group.name
            for group in cut_groups
            if cut.plan and group.changes_statistics and len(cut.plan.keep[group.name]) < group.width
        ],
        random_data=any(source is not None and source.startswith("random:") for source in sources),
        warnings=[
            *cut.notices,
            *(Notice("scores", note) for note in notes),
            *(Notice("parity", note) for note in checked.parity_notes),
            *checked.warnings,
        ],
        environment=Environment(device, versions()),
    )


def settings_of(cut: Cut, recovery: Recovery | None) -> dict[str, Json]:
    """Return what was asked for, in the order to show it; what was left alone is left out."""
    if cut.plan is None:
        return {}
    about = to_plain(cut.scores.about) if cut.scores else {"seed": cut.plan.seed}
    asked, untouched = to_plain(cut.plan.constraints), to_plain(Constraints())
    chosen = {
        "method": cut.plan.method,
        "budget": cut.plan.budget,
        "scope": cut.plan.scope.value,
        "rank": cut.plan.rank.value,
        **{name: value for name, value in asked.items() if value != untouched[name]},
        "recovery": recovery.method if recovery else None,
        "sample": about.get("sample"),
        **{name: value for name, value in about.items() if name not in _NOT_ASKED},
        "seed": about["seed"],
    }
    return {name: value for name, value in chosen.items() if value or name == "seed"}


def _written(path: Path, content: bytes) -> WrittenFile:
    return WrittenFile(path.name, len(content), hashlib.sha256(content).hexdigest())
