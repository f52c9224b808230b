"""What was cut -> what its files say of it: the record inside the model file, and the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from prunecli.costs import describe
from prunecli.export.files import Content
from prunecli.export.masks import holds, to_record
from prunecli.export.record import PrunedRecord, write_sizes
from prunecli.graph.copying import named_tensors
from prunecli.graph.cutting import attribute_values
from prunecli.graph.structure import Kept
from prunecli.importance import About, Granularity, Scores
from prunecli.pipeline.opening import Opened, parents_of
from prunecli.pipeline.versions import versions
from prunecli.plan import Constraints, Plan
from prunecli.report import (
    Accuracy,
    Change,
    Environment,
    MaskFacts,
    ModelFacts,
    Notice,
    OnnxCheck,
    ParityCheck,
    Recovery,
    Report,
    ScoreFacts,
    TrainingFacts,
    WrittenFile,
    compare,
    mask_facts,
    score_facts,
)
from prunecli.spec import to_json_dict
from prunecli.spec.rebase import rebase
from prunecli.strict_json import Json, to_plain
from prunecli.weights import Masking, Masks
from prunecli.weights.masked import kept_counts

_NOT_ASKED = ("method", "granularity", "notes", "fallbacks", "seed")
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
    masking: Masking | None = None
    """How weights were masked, if they were."""
    masks: Masks | None = None
    """Which weights of the smaller model are zero for good."""

    @property
    def about(self) -> About | None:
        """How the scores came to be that it follows, of units or of weights; None where there are none."""
        if self.masking is not None:
            return self.masking.about
        return self.scores.about if self.scores is not None else None


@dataclass(frozen=True)
class Checked:
    """What was found out about the smaller model before anything is written."""

    parity: tuple[ParityCheck, ...] = ()
    parity_notes: tuple[str, ...] = ()
    accuracy: tuple[Accuracy | None, Accuracy | None] = (None, None)
    recovery: Recovery | None = None
    warnings: tuple[Notice, ...] = ()
    onnx: OnnxCheck | None = None
    semi_structured: str | None = None
    """Whether torch's kernels for 2:4 take the weights, where they have that pattern."""
    stored_as: str | None = None
    """In what precision the file holds them, where it is not the model's."""


def make_record(
    cut: Cut, folder: Path, parity: tuple[ParityCheck, ...], recovery: Recovery | None = None
) -> PrunedRecord:
    """Return what a file in `folder` says of itself. A model pruned before keeps the sizes set then."""
    before = cut.opened.record or PrunedRecord()
    masks = to_record(cut.masks or {}, named_tensors(cut.smaller))
    if cut.plan is None:
        return replace(
            before,
            spec=to_json_dict(rebase(cut.opened.spec, folder)),
            masks=masks,
            method=settings_of(cut, recovery) if cut.masking is not None else before.method,
            parents=parents_of(cut.opened),
            versions=versions(),
        )
    return PrunedRecord(
        spec=to_json_dict(rebase(cut.opened.spec, folder)),
        attributes=sizes_of(cut.opened, cut.plan.kept(), cut.smaller),
        rewritten={**before.rewritten, **cut.opened.structure.rewritten},
        masks=masks,
        plan=to_plain(cut.plan),
        method=settings_of(cut, recovery),
        parents=parents_of(cut.opened),
        parity=to_plain(parity) if parity else None,
        versions=versions(),
    )


def with_lasting_masks(cut: Cut) -> Cut:
    """Return the cut with the masks that its model still keeps to, and a notice of the others."""
    tensors = named_tensors(cut.smaller)
    masks = cut.masks or {}
    lasting = {name: mask for name, mask in masks.items() if name in tensors and holds(mask, tensors[name])}
    lost = [name for name in masks if name not in lasting]
    if not lost:
        return cut
    text = (
        f"`{lost[0]}`{f' and {len(lost) - 1} more' if lost[1:] else ''}: masked weights were solved anew "
        "and are no longer zero; the file keeps no mask of them."
    )
    return replace(cut, masks=lasting or None, notices=(*cut.notices, Notice("masks", text)))


def sizes_of(opened: Opened, kept: Kept, smaller: nn.Module) -> dict[str, dict[str, Json]]:
    """Return the sizes that a file sets in modules: those of an earlier pruning, and those of this one."""
    before = opened.record.attributes if opened.record is not None else {}
    sizes = write_sizes(attribute_values(opened.structure, kept, smaller))
    return {name: {**before.get(name, {}), **sizes.get(name, {})} for name in (*before, *sizes)}


def make_report(cut: Cut, checked: Checked, contents: Mapping[Path, Content], device: str) -> Report:
    """Put the two models side by side."""
    notes = cut.about.notes if cut.about else ()
    data = cut.opened.spec.data
    sources = (
        cut.about.sample if cut.about else None,
        data.test,
        data.train if cut.training else None,
    )
    cut_groups = cut.opened.structure.groups if cut.plan is not None else ()
    before, after = cut.opened.facts, describe(cut.smaller, *cut.opened.example)
    return compare(
        before,
        after,
        title=cut.opened.name,
        masks=_mask_facts(cut, checked, before, after),
        units=Change(cut.plan.unit_count, cut.plan.kept_count) if cut.plan is not None else None,
        accuracy=checked.accuracy,
        parity=checked.parity,
        recovery=checked.recovery,
        training=cut.training,
        onnx=checked.onnx,
        scores=_score_facts(cut),
        files=[_written(path, content) for path, content in contents.items()],
        settings=_with_precision(settings_of(cut, checked.recovery), checked.stored_as),
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
    if cut.masking is not None:
        return _settings_of_masking(cut.masking)
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
        **_asked_of_scores(about),
    }
    return {name: value for name, value in chosen.items() if value or name == "seed"}


def _with_precision(settings: dict[str, Json], stored_as: str | None) -> dict[str, Json]:
    return {**settings, "stored_as": stored_as} if stored_as is not None else settings


def _settings_of_masking(masking: Masking) -> dict[str, Json]:
    if masking.budget.ratio == 1:  # nothing was to go by any method
        return {
            "granularity": Granularity.WEIGHT.value,
            "budget": "what is masked already",
            "seed": masking.about.seed,
        }
    selection = masking.selection
    chosen = {
        "method": masking.about.method,
        "granularity": Granularity.WEIGHT.value,
        "budget": masking.budget.text,
        "scope": selection.scope.value,
        "ratio_base": masking.budget.base.value,
        "mask_rule": selection.rule.value,
        "pattern": selection.pattern.text if selection.pattern is not None else None,
        "min_keep": selection.min_keep,
        "keep_layer": dict(selection.keep_layer),
        **_asked_of_scores(to_plain(masking.about)),
    }
    return {name: value for name, value in chosen.items() if value or name == "seed"}


def _asked_of_scores(about: Mapping[str, Json]) -> dict[str, Json]:
    """Return what of the scores was asked for, the sample first and the seed last."""
    rest = {name: value for name, value in about.items() if name not in _NOT_ASKED}
    return {"sample": about.get("sample"), **rest, "seed": about["seed"]}


def _score_facts(cut: Cut) -> ScoreFacts | None:
    """Return how the scores that the plan follows are spread; None where it follows none."""
    if cut.scores is None or cut.plan is None:
        return None
    by_group = {name: values.numpy() for name, values in cut.scores.by_group.items()}
    return score_facts(cut.scores.method, by_group, cut.plan.keep)


def _mask_facts(cut: Cut, checked: Checked, before: ModelFacts, after: ModelFacts) -> MaskFacts | None:
    """Return what masks leave: of the dense model where they were made, else of the model that has them."""
    if cut.masking is not None:
        budget, pattern = cut.masking.budget, cut.masking.selection.pattern
        return mask_facts(
            kept_counts(cut.masking.masks),
            before,
            ratio=float(budget.ratio) if budget.ratio > 1 else None,
            base=budget.base.value,
            pattern=pattern.text if pattern is not None else None,
            semi_structured=checked.semi_structured,
        )
    return mask_facts(kept_counts(cut.masks), after) if cut.masks else None


def _written(path: Path, content: Content) -> WrittenFile:
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else content.sha256
    return WrittenFile(path.name, len(content), digest)
