"""Report -> what it comes to: one sentence, and the few figures to remember with what they were before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prunecli.report.masks import is_cut
from prunecli.report.numbers import human, human_bytes, milliseconds, percent
from prunecli.report.svg import harmless
from prunecli.report.values import Change, Report, Timing


@dataclass(frozen=True)
class Card:
    """One figure."""

    label: str
    now: str
    was: str
    share: float | None = None
    """How full its bar is, of 1."""
    mark: float | None = None
    """Where the bar stood before, of 1."""


def verdict(report: Report) -> str:
    """Say in one sentence what came of it.

    >>> from prunecli.report.values import Accuracy, Totals
    >>> totals = Totals(params=Change(100, 40), macs=Change(1000, 505), parameter_bytes=Change(400, 160))
    >>> before, after = Accuracy(360, top1=0.975), Accuracy(360, top1=0.95)
    >>> verdict(Report("net", (), totals, before, after))
    'Half of the MACs and 60.0% of the params are gone; top1 97.50% -> 95.00%.'
    """
    parts = [_what_went(report)]
    before, after = report.accuracy_before, report.accuracy_after
    for name in ("top1", "loss"):
        old, new = getattr(before, name, None), getattr(after, name, None)
        if new is not None:
            write = _hits if name == "top1" else _loss
            parts.append(
                f"{name} {write(old)} -> {write(new)}" if old is not None else f"{name} {write(new)}"
            )
            break
    for runtime, _, timing in _timings(report):
        parts.append(f"a batch takes {percent(timing.ratio)} of the time in {runtime}")
        break
    return "; ".join(parts) + "."


def cards(report: Report) -> Iterator[Card]:
    """Yield the figures there are."""
    totals, masks = report.totals, report.masks
    yield _counted("MACs", totals.macs, human)
    yield _counted("Params", totals.params, human)
    if totals.units is not None and (masks is None or is_cut(report)):
        yield _counted("Units", totals.units, lambda number: f"{number:,}")
    if masks is not None:
        yield _counted("Weights", Change(masks.size, masks.kept), human)
    if totals.file_bytes is not None:
        yield _counted("File size", totals.file_bytes, human_bytes)
    else:
        yield _counted("Size of the params", totals.parameter_bytes, human_bytes)
    if totals.peak_activation_bytes is not None:
        yield _counted("Peak activation memory", totals.peak_activation_bytes, human_bytes)
    for runtime, first, timing in _timings(report):
        was = f"{percent(timing.ratio)} of {milliseconds(first.median)}"
        yield Card(f"Latency, {runtime}", milliseconds(timing.median), was, min(timing.ratio, 1.0))
    yield from _accuracies(report)


def draw_cards(found: Iterator[Card]) -> Iterator[str]:
    """Yield the figures as HTML, each with a bar of what is left."""
    yield '<dl class="cards">'
    for card in found:
        yield f'<div><dt>{harmless(card.label)}</dt><dd class="now">{harmless(card.now)}</dd>'
        yield f'<dd class="was">{harmless(card.was)}{_bar(card)}</dd></div>'
    yield "</dl>"


def _bar(card: Card) -> str:
    if card.share is None:
        return ""
    share = f'<rect class="fill" width="{100 * card.share:.1f}%" height="6"/>'
    mark = (
        f'<rect class="tick" x="{99.2 * card.mark:.1f}%" width="2" height="6"/>'
        if card.mark is not None
        else ""
    )
    return f'<svg aria-hidden="true"><rect class="track" width="100%" height="6"/>{share}{mark}</svg>'


def _what_went(report: Report) -> str:
    totals, masks, training = report.totals, report.masks, report.training
    gone = [
        (_gone(change.ratio), name) for name, change in (("MACs", totals.macs), ("params", totals.params))
    ]
    less = [f"{text} of the {name}" for (text, is_less), name in gone if is_less]
    more = [f"the {name} grew by {text}" for (text, is_less), name in gone if is_less is False]
    if less or more:
        text = "; ".join([f"{' and '.join(less)} are gone"] * bool(less) + more)
    elif masks is not None and masks.kept < masks.size:
        text = f"{percent(1 - masks.kept / masks.size)} of the prunable weights are zero"
    elif training is not None and training.phases:
        epochs = sum(phase.epochs for phase in training.phases)
        text = f"trained for {epochs} epoch{'s' * (epochs != 1)}; nothing was cut"
    else:
        text = "nothing was cut"
    return text[0].upper() + text[1:]


def _gone(ratio: float) -> tuple[str, bool | None]:
    """Write what went, and whether it is less than before; None where it is the same.

    >>> _gone(0.51), _gone(0.25), _gone(1.1), _gone(1.0), _gone(0.9999)
    (('half', True), ('75.0%', True), ('10.0%', False), ('0.0%', None), ('less than 0.1%', True))
    """
    if 0.485 <= ratio <= 0.515:
        return "half", True
    text = percent(abs(1 - ratio))
    is_less = None if ratio == 1 else ratio < 1
    return ("less than 0.1%" if text == "0.0%" and is_less is not None else text), is_less


def _counted(label: str, change: Change, write: Callable[[int], str]) -> Card:
    if change.before == change.after:
        return Card(label, write(change.after), "as before", 1.0)
    was = f"{percent(change.ratio)} of {write(change.before)}"
    return Card(label, write(change.after), was, min(change.ratio, 1.0))


def _accuracies(report: Report) -> Iterator[Card]:
    before, after = report.accuracy_before, report.accuracy_after
    for name, label in (("top1", "Accuracy (top-1)"), ("top5", "Accuracy (top-5)")):
        old, new = getattr(before, name, None), getattr(after, name, None)
        if new is not None:
            was = f"was {_hits(old)} ({100 * (new - old):+.2f})" if old is not None else ""
            yield Card(label, _hits(new), was, new, old)
    old, new = getattr(before, "loss", None), getattr(after, "loss", None)
    if new is not None:
        yield Card("Loss", _loss(new), f"was {_loss(old)}" if old is not None else "")


def _timings(report: Report) -> Iterator[tuple[str, Timing, Timing]]:
    """Yield how long the first and the last model take, in each runtime that ran both."""
    if len(report.models) > 1:
        first, last = report.models[0], report.models[-1]
        for runtime, before, after in (
            ("PyTorch", first.pytorch, last.pytorch),
            ("onnxruntime", first.onnxruntime, last.onnxruntime),
        ):
            if before is not None and after is not None:
                yield runtime, before, after


def _hits(value: float) -> str:
    return f"{100 * value:.2f}%"


def _loss(value: float) -> str:
    return f"{value:.4f}"
