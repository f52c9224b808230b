"""Two models, as plain numbers -> Report. What is odd about the smaller one becomes a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prunecli.report.distributions import ScoreFacts
from prunecli.report.points import TradeOff
from prunecli.report.values import (
    Accuracy,
    Change,
    ComparedModel,
    Environment,
    LatencyFacts,
    LayerChange,
    LayerFacts,
    MaskFacts,
    ModelFacts,
    Notice,
    OnnxCheck,
    ParityCheck,
    Recovery,
    Report,
    Totals,
    TrainingFacts,
    WrittenFile,
)
from prunecli.strict_json import Json

COLLAPSE = 0.1
"""A layer that keeps less than this share of its units is warned about."""
HARDWARE_WIDTH = 8
"""Kernels run best on multiples of this many channels."""


def compare(
    before: ModelFacts,
    after: ModelFacts,
    *,
    title: str,
    units: Change | None = None,
    accuracy: tuple[Accuracy | None, Accuracy | None] = (None, None),
    parity: Sequence[ParityCheck] = (),
    recovery: Recovery | None = None,
    training: TrainingFacts | None = None,
    masks: MaskFacts | None = None,
    onnx: OnnxCheck | None = None,
    scores: ScoreFacts | None = None,
    models: Sequence[ComparedModel] = (),
    latency: LatencyFacts | None = None,
    trade_off: TradeOff | None = None,
    files: Sequence[WrittenFile] = (),
    settings: Mapping[str, Json] | None = None,
    statistics_changed: Sequence[str] = (),
    random_data: bool = False,
    warnings: Sequence[Notice] = (),
    environment: Environment | None = None,
) -> Report:
    """Put two models side by side.

    Args:
        before: The dense model.
        after: The smaller one. Layers are matched by name.
        title: What was pruned; a name, never a path.
        units: Prunable units, all groups together, where the groups are known.
        accuracy: Before and after, where labelled data is known.
        parity: The proofs that were run.
        recovery: What was done after the cut to win accuracy back.
        training: How the smaller model was trained.
        masks: Which weights are zero in it.
        onnx: The check of the ONNX file, where there is one.
        scores: What the units were ranked by.
        models: The files compared, from the dense one to the smallest.
        latency: How the models were timed.
        trade_off: What a sweep found.
        files: What was written.
        settings: What was asked for.
        statistics_changed: Layers that normalise over the units removed.
        random_data: Whether scores or accuracy come from made-up samples.
        warnings: Further notices, put before those found here.
        environment: What it ran on.
    """
    layers = _match(before.layers, after.layers)
    collapse = _collapse(masks) if masks is not None else ()
    not_counted = (*before.not_counted, *after.not_counted)
    found = _notices(layers, not_counted, statistics_changed, random_data, by_units=masks is None)
    return Report(
        title=title,
        layers=layers,
        totals=Totals(
            params=Change(before.params, after.params),
            macs=Change(before.macs, after.macs),
            parameter_bytes=Change(before.parameter_bytes, after.parameter_bytes),
            units=units,
            file_bytes=Change(models[0].file_bytes, models[-1].file_bytes) if models else None,
            peak_activation_bytes=_known_change(before.peak_activation_bytes, after.peak_activation_bytes),
        ),
        accuracy_before=accuracy[0],
        accuracy_after=accuracy[1],
        parity=tuple(parity),
        recovery=recovery,
        training=training,
        masks=masks,
        onnx=onnx,
        scores=scores,
        models=tuple(models),
        latency=latency,
        trade_off=trade_off,
        files=tuple(files),
        settings=dict(settings or {}),
        warnings=(*collapse, *warnings, *found),
        environment=environment,
    )


def _match(before: Iterable[LayerFacts], after: Iterable[LayerFacts]) -> tuple[LayerChange, ...]:
    """Pair layers by name, in the order of the dense model; layers it has not come last."""
    old = {layer.name: layer for layer in before}
    new = {layer.name: layer for layer in after}
    return tuple(_change(name, old.get(name), new.get(name)) for name in dict.fromkeys((*old, *new)))


def _change(name: str, old: LayerFacts | None, new: LayerFacts | None) -> LayerChange:
    known = old or new
    assert known is not None
    is_folded = old is not None and new is None and not old.macs  # into its neighbour, as exporters do
    return LayerChange(
        name=name,
        kind=known.kind,
        units=None if is_folded else _known_change(old.units if old else 0, new.units if new else 0),
        params=Change(old.params if old else 0, new.params if new else 0),
        macs=Change(old.macs if old else 0, new.macs if new else 0),
        activation_bytes=None
        if is_folded
        else _known_change(old.activation_bytes if old else 0, new.activation_bytes if new else 0),
    )


def _known_change(old: int | None, new: int | None) -> Change | None:
    return Change(old, new) if old is not None and new is not None else None


def _collapse(masks: MaskFacts) -> tuple[Notice, ...]:
    """Return the warning that should stand before all others: nothing passes through a layer."""
    if not masks.collapsed:
        return ()
    names = _listed([name or "(root)" for name in masks.collapsed])
    through = "them" if len(masks.collapsed) > 1 else "it"
    text = f"No weight is left in {names}: nothing passes through {through}. "
    return (Notice("collapse", f"{text}See `--min-keep`, `--scope layer` or `--no-collapse`."),)


def _notices(
    layers: Iterable[LayerChange],
    not_counted: Iterable[str],
    statistics_changed: Sequence[str],
    random_data: bool,
    by_units: bool,
) -> tuple[Notice, ...]:
    """Return what is odd about the smaller model, with the option that helps where units were chosen."""
    cut = [
        layer
        for layer in layers
        if layer.units and layer.macs.after and layer.units.after < layer.units.before
    ]
    thin = [layer for layer in cut if layer.units and layer.units.ratio < COLLAPSE]
    odd = [layer for layer in cut if layer.units and layer.units.after % HARDWARE_WIDTH]
    notices = []
    if random_data:
        notices.append(
            Notice("random-data", "The samples are made up: scores and accuracy say nothing of real data.")
        )
    if thin:
        text = (
            f"Less than {COLLAPSE:.0%} of the units are left: {_names(thin)}."
            + " See `--min-keep`." * by_units
        )
        notices.append(Notice("near-collapse", text))
    if odd:
        count = f"{len(odd)} of {len(cut)} widths cut"
        text = (
            f"{count} are no multiple of {HARDWARE_WIDTH}: {_names(odd)}." + " See `--round-to`." * by_units
        )
        notices.append(Notice("odd-width", text))
    if statistics_changed:
        text = f"A normalisation or mean runs over units removed: {_listed(statistics_changed)}. Fine-tune."
        notices.append(Notice("statistics", text))
    if unknown := list(dict.fromkeys(not_counted)):
        notices.append(Notice("not-counted", f"MACs not counted: {_listed(unknown)}."))
    return tuple(notices)


def _names(layers: Sequence[LayerChange]) -> str:
    return _listed(
        [f"{layer.name} {layer.units.after}/{layer.units.before}" for layer in layers if layer.units]
    )


def _listed(items: Sequence[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
