"""Report -> Markdown and CSV, and how numbers are written for people."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from prunecli.report.masks import is_cut, mask_lines, weights_of
from prunecli.report.models_text import latency_text, lineage_lines, models_table
from prunecli.report.numbers import human, human_bytes, percent
from prunecli.report.spreadsheet import csv_text
from prunecli.report.training_text import figure_lines, phase_notes, phase_table, shows_layers, training_text
from prunecli.report.values import Accuracy, LayerChange, OnnxCheck, ParityCheck, Recovery, Report

_SHOWN = 20
_MOST_CHARACTERS = 500_000  # a CI summary of more than 1 MiB is dropped whole
_CSV_HEADER = (
    "layer", "type", "units_before", "units_after", "params_before", "params_after",
    "macs_before", "macs_after", "macs_share",
    "weights_kept", "weights_size", "activation_bytes_before", "activation_bytes_after",
)  # fmt: skip


def to_csv(report: Report) -> str:
    """Return one line per layer, with exact numbers.

    `macs_share` is the layer's part of the MACs left; `weights_kept` and `weights_size` are empty where a
    layer has no masks. Files between the first and the last have columns of their own, such as
    `units[net.pruned.safetensors]`.
    """
    masked = weights_of(report)
    between = [
        (model.name, {layer.name: layer for layer in model.facts.layers}) for model in report.models[1:-1]
    ]
    more = [f"{what}[{name}]" for name, _ in between for what in ("units", "params", "macs")]
    rows: list[Sequence[object]] = [(*_CSV_HEADER, *more)]
    for layer in report.layers:
        units = (layer.units.before, layer.units.after) if layer.units else ("", "")
        numbers = (layer.params.before, layer.params.after, layer.macs.before, layer.macs.after)
        share = f"{macs_share(layer, report):.6f}"
        found = masked.get(layer.name)
        weights = (found.kept, found.size) if found else ("", "")
        memory = layer.activation_bytes
        sizes = (memory.before, memory.after) if memory else ("", "")
        others = [known.get(layer.name) for _, known in between]
        figures = [
            value for one in others for value in ((one.units, one.params, one.macs) if one else ("", "", ""))
        ]
        rows.append((layer.name, layer.kind, *units, *numbers, share, *weights, *sizes, *figures))
    return csv_text(rows)


def to_markdown(report: Report) -> str:
    """Return a summary for a pull request: totals, checks, the first layers, the rest folded away."""
    layers = [layer for layer in report.layers if layer.macs.before or layer.macs.after] or list(
        report.layers
    )
    parts = [
        f"### {_cell(report.title)}",
        "\n".join(_totals(report)),
        "\n".join(f"- {line}" for line in _facts(report)),
        "\n".join(_table(models_table(report))) if len(report.models) > 2 else "",
        "\n".join(_table(phase_table(report.training))) if report.training else "",
        "\n".join(_layer_table(report, layers[:_SHOWN])) if layers and shows_layers(report) else "",
    ]
    if (rest := layers[_SHOWN:]) and shows_layers(report):
        rows = _layer_table(report, rest)
        room = _MOST_CHARACTERS - sum(map(len, parts))
        shown = _fitting(rows, room)
        title = f"{len(rest)} more layer{'s' if len(rest) > 1 else ''}" + (
            "" if shown == len(rows) else f", {shown - 2} of them shown"
        )
        parts.append(f"<details><summary>{title}</summary>\n\n" + "\n".join(rows[:shown]) + "\n\n</details>")
    return "\n\n".join(part for part in parts if part) + "\n"


def macs_share(layer: LayerChange, report: Report) -> float:
    """Return the layer's part of the MACs that are left."""
    total = report.totals.macs.after
    return layer.macs.after / total if total else 0.0


def accuracy_text(before: Accuracy | None, after: Accuracy | None) -> str:
    """Write what is known of the accuracy of both models.

    >>> accuracy_text(Accuracy(360, 0.1, top1=0.975), Accuracy(360, 0.25, top1=0.95))
    'top1 97.50% -> 95.00% (-2.50), loss 0.1000 -> 0.2500, 360 samples'
    """
    known = after or before
    if known is None:
        return ""
    parts = []
    for name in ("top1", "top5"):
        old, new = getattr(before, name, None), getattr(after, name, None)
        if old is not None and new is not None:
            parts.append(f"{name} {100 * old:.2f}% -> {100 * new:.2f}% ({100 * (new - old):+.2f})")
        elif (alone := new if new is not None else old) is not None:
            parts.append(f"{name} {100 * alone:.2f}%")
    losses = [f"{item.loss:.4f}" for item in (before, after) if item is not None and item.loss is not None]
    if losses:
        parts.append(f"loss {' -> '.join(losses)}")
    return ", ".join([*parts, f"{known.samples:,} samples"])


def parity_text(check: ParityCheck) -> str:
    """Write one proof.

    >>> parity_text(ParityCheck("structure", 2.1e-15, 1e-9, "float64"))
    'structure 2.1e-15 (allowed 1e-09, float64)'
    """
    return f"{check.name} {check.error:.1e} (allowed {check.bound:.0e}, {check.dtype})"


def recovery_text(recovery: Recovery) -> str:
    """Write what was done to win accuracy back.

    >>> from prunecli.report.values import RecoveredLayer
    >>> layers = (RecoveredLayer("conv2", 0.3, 0.1), RecoveredLayer("fc", 0.2, 0.1))
    >>> text = recovery_text(Recovery("reconstruct", 512, "npz:a.npz", Accuracy(360, top1=0.5), layers))
    >>> for part in text.split("; "):
    ...     print(part)
    2 layers re-solved on 512 samples: error 25.0% -> 10.0% on average
    the plain cut had top1 50.00% (360 samples)
    """
    if recovery.method == "recalibrate-bn":
        text = f"{recovery.norms} normalisations recalibrated on {recovery.samples:,} samples"
    else:
        done = "re-solved" if recovery.method == "reconstruct" else "trained"
        text = f"{len(recovery.layers)} layers {done} on {recovery.samples:,} samples"
        if recovery.layers:
            before, after = (
                sum(getattr(layer, name) for layer in recovery.layers) / len(recovery.layers)
                for name in ("error_before", "error_after")
            )
            text += f": error {percent(before)} -> {percent(after)} on average"
    found = recovery.accuracy_before
    known = [
        (name, value) for name in ("top1", "top5") if found and (value := getattr(found, name)) is not None
    ]
    if found is None or not known:
        return text
    name, value = known[0]
    return f"{text}; the plain cut had {name} {100 * value:.2f}% ({found.samples:,} samples)"


def onnx_text(check: OnnxCheck) -> str:
    """Write how far onnxruntime is from PyTorch.

    >>> onnx_text(OnnxCheck(3.1e-7, (1, 2, 3), True, 20))
    'error 3.1e-07 against PyTorch at batch 1, 2, 3; dynamic batch, opset 20'
    """
    batches = ", ".join(map(str, check.batches))
    kind = "dynamic batch" if check.dynamic_batch else "fixed batch"
    return f"error {check.error:.1e} against PyTorch at batch {batches}; {kind}, opset {check.opset}"


def _totals(report: Report) -> Iterator[str]:
    totals = report.totals
    yield "| | before | after | left |"
    yield "|---|---:|---:|---:|"
    if totals.units:
        yield f"| units | {totals.units.before:,} | {totals.units.after:,} | {percent(totals.units.ratio)} |"
    for name, change in (("params", totals.params), ("MACs", totals.macs)):
        yield f"| {name} | {human(change.before)} | {human(change.after)} | {percent(change.ratio)} |"
    sizes = (
        ("size", totals.parameter_bytes),
        ("file", totals.file_bytes),
        ("peak activations", totals.peak_activation_bytes if report.models else None),
    )
    for name, size in sizes:
        if size is not None:
            before, after = human_bytes(size.before), human_bytes(size.after)
            yield f"| {name} | {before} | {after} | {percent(size.ratio)} |"


def _facts(report: Report) -> Iterator[str]:
    for label, text in mask_lines(report):
        yield f"{label}: {text if label == 'weights' else _cell(text)}" if label else text
    if accuracy := accuracy_text(report.accuracy_before, report.accuracy_after):
        yield f"accuracy: {accuracy}"
    if latency := latency_text(report):
        yield f"latency: {_cell(latency)}"
    yield from map(_cell, lineage_lines(report))
    if report.training:
        yield f"training: {_cell(training_text(report.training))}"
        yield from (f"{name}: {_cell(value)}" for name, value in figure_lines(report.training))
        yield from map(_cell, phase_notes(report.training))
    if report.recovery:
        yield f"recovery: {recovery_text(report.recovery)}"
        yield from map(_cell, report.recovery.notes)
    if report.parity:
        yield "parity: " + _cell("; ".join(map(parity_text, report.parity)))
    if report.onnx:
        yield f"ONNX: {onnx_text(report.onnx)}"
        yield from map(_cell, report.onnx.notes)
    yield from (f"written: {_cell(file.name)}, {human_bytes(file.size)}" for file in report.files)
    yield from (f"**warning:** {_prose(notice.text)}" for notice in report.warnings)


def _table(table: Sequence[Sequence[str]]) -> Iterator[str]:
    titles, *rows = table
    yield f"| {' | '.join(titles)} |"
    yield f"|---|{'---:|' * (len(titles) - 1)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _layer_table(report: Report, layers: Sequence[LayerChange]) -> list[str]:
    masked, has_units = weights_of(report), report.masks is None or is_cut(report)
    titles = (*["units"] * has_units, *["weights", "left"] * bool(masked), "params", "MACs", "share")
    head = [f"| layer | type | {' | '.join(titles)} |", "|---|---|" + "---:|" * len(titles)]
    rows = []
    for layer in layers:
        cells = [f"{layer.units.after}/{layer.units.before}" if layer.units else ""] if has_units else []
        if masked:
            found = masked.get(layer.name)
            cells += [f"{found.kept}/{found.size}", percent(found.share)] if found else ["", ""]
        cells += [f"{human(each.before)} → {human(each.after)}" for each in (layer.params, layer.macs)]
        cells.append(percent(macs_share(layer, report)))
        rows.append(f"| {_cell(layer.name or '(root)')} | {_cell(layer.kind)} | {' | '.join(cells)} |")
    return head + rows


def _fitting(rows: Sequence[str], room: int) -> int:
    """Return how many of the rows fit into so many characters."""
    for i, row in enumerate(rows):
        room -= len(row) + 1
        if room < 0:
            return i
    return len(rows)


def _cell(text: str) -> str:
    """Make a text harmless inside Markdown: names may come from anywhere."""
    return "".join(f"\\{c}" if c in "\\`*_[]|~" else c for c in _safe(text))


def _prose(text: str) -> str:
    """Make a sentence harmless that may quote code: what stands between single backticks stays."""
    if "``" in text or text.count("`") % 2:
        return _cell(text)
    return "`".join(_safe(part) if i % 2 else _cell(part) for i, part in enumerate(text.split("`")))


def _safe(text: str) -> str:
    """Take out tags and control characters."""
    return html.escape("".join(c if c.isprintable() else " " for c in text), quote=False)
