"""What is known of two models, as plain numbers that survive a JSON round trip. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prunecli.errors import InputError
from prunecli.history import EpochRow
from prunecli.report.distributions import ScoreFacts
from prunecli.report.points import TradeOff
from prunecli.strict_json import FieldError, Json, VersionError, from_plain, read_versioned, to_plain

REPORT_VERSION = 1


@dataclass(frozen=True)
class LayerFacts:
    """One module with parameters or arithmetic of its own."""

    name: str
    kind: str
    """The class name, as in `Conv2d`."""
    units: int | None
    """What it puts out, where that is one number."""
    params: int
    macs: int
    activation_bytes: int | None = None
    """What it puts out for one sample, all its calls together."""


@dataclass(frozen=True)
class ModelFacts:
    """One model: its layers in the order they are built, and what could not be counted."""

    layers: tuple[LayerFacts, ...]
    parameter_bytes: int
    not_counted: tuple[str, ...] = ()
    """Operations whose multiply-accumulates nobody knows."""
    peak_activation_bytes: int | None = None
    """The most that intermediate tensors hold at one time, for one sample, without gradients. Attention
    counts as plain matrix products: fused kernels hold less."""

    @property
    def params(self) -> int:
        """Parameters, tied ones once."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample."""
        return sum(layer.macs for layer in self.layers)


@dataclass(frozen=True)
class Change:
    """One number, before and after."""

    before: int
    after: int

    @property
    def ratio(self) -> float:
        """What is left: after / before; 1 where there was nothing."""
        return self.after / self.before if self.before else 1.0

    def __add__(self, other: Change) -> Change:
        """Return the sums."""
        return Change(self.before + other.before, self.after + other.after)


@dataclass(frozen=True)
class LayerChange:
    """One layer, before and after. A layer that only one of the models has counts nothing in the other."""

    name: str
    kind: str
    units: Change | None
    params: Change
    macs: Change
    activation_bytes: Change | None = None
    """What it puts out for one sample."""


@dataclass(frozen=True)
class Totals:
    """The whole model, before and after."""

    params: Change
    macs: Change
    parameter_bytes: Change
    units: Change | None = None
    """Prunable units, where the groups are known."""
    file_bytes: Change | None = None
    """The files themselves, where both are known."""
    peak_activation_bytes: Change | None = None
    """The most that intermediate tensors hold at one time, for one sample, without gradients."""


@dataclass(frozen=True)
class Accuracy:
    """How good a model is on labelled data. `top1` and `top5` are shares of 1, None where meaningless."""

    samples: int
    loss: float | None = None
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class ParityCheck:
    """One comparison with the masked dense model."""

    name: str
    error: float
    bound: float
    dtype: str


@dataclass(frozen=True)
class RecoveredLayer:
    """One layer that was re-solved or trained: how far it was from the dense one, and is now.

    A squared distance, over the spread there for `reconstruct`, over the squared size for `i-spasp-train`.
    """

    name: str
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Recovery:
    """What was done after the cut, without training the whole, to win accuracy back."""

    method: str
    """`recalibrate-bn`, `reconstruct` or `i-spasp-train`."""
    samples: int
    sample: str
    """The source of the samples, without folders."""
    accuracy_before: Accuracy | None = None
    """That of the plain cut."""
    layers: tuple[RecoveredLayer, ...] = ()
    norms: int = 0
    """How many normalisations were recalibrated."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseFacts:
    """One stretch of training, as it stood at its end. Accuracies are shares of 1."""

    name: str
    epochs: int
    loss: float
    units: int | None = None
    params: int | None = None
    macs: int | None = None
    top1: float | None = None
    test_loss: float | None = None
    test_top1: float | None = None
    best_top1: float | None = None
    """The best on test data in any of its epochs."""
    density: float | None = None
    """Share of activations that are not zero, where the schedule counts them."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained."""

    schedule: str
    batch_size: int
    phases: tuple[PhaseFacts, ...] = ()
    rows: tuple[EpochRow, ...] = ()
    arguments: Mapping[str, Json] = field(default_factory=dict)
    """Of the schedule."""
    recipe: Mapping[str, Json] = field(default_factory=dict)
    """What of the recipe was set, and how long."""
    figures: Mapping[str, Json] = field(default_factory=dict)
    """What the schedule has to say of the whole run."""


@dataclass(frozen=True)
class OnnxCheck:
    """How far onnxruntime is from PyTorch on the exported file."""

    error: float
    batches: tuple[int, ...]
    dynamic_batch: bool
    opset: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WrittenFile:
    """A file on disk; its name without the folder."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Timing:
    """How long one batch took in one runtime: quartiles over the runs, in milliseconds."""

    low: float
    median: float
    high: float
    ratio: float
    """The median over the runs of this time, divided by that of the first model in the same run."""


@dataclass(frozen=True)
class LatencyFacts:
    """How latency was measured: the models took turns, run by run."""

    batch_size: int
    runs: int
    device: str
    """Of PyTorch; onnxruntime runs on the CPU."""
    threads: int


@dataclass(frozen=True)
class ComparedModel:
    """One of the files compared, by itself."""

    name: str
    read_as: str
    """How the file was read, as in `safetensors`, `pruned file` or `ONNX`."""
    sha256: str
    file_bytes: int
    facts: ModelFacts
    accuracy: Accuracy | None = None
    pytorch: Timing | None = None
    """None where it was not timed, or is no model of PyTorch."""
    onnxruntime: Timing | None = None
    method: Mapping[str, Json] = field(default_factory=dict)
    """What was asked for when it was pruned, as the file says."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Files that it was made from: name (no folder) -> sha256."""


@dataclass(frozen=True)
class MaskedLayer:
    """How many weights of a layer are left, of those that can be pruned one by one."""

    name: str
    kept: int
    size: int

    @property
    def share(self) -> float:
        """What is left: kept / size; 1 where there was nothing."""
        return self.kept / self.size if self.size else 1.0


@dataclass(frozen=True)
class MaskFacts:
    """Which weights are set to zero. The shapes of the model stay, and so do its params and MACs."""

    layers: tuple[MaskedLayer, ...]
    ratio: float | None
    """The compression r that was asked for, where it was."""
    effective_ratio: float | None
    """r_e = n / n_left, with n of what `base` says; None where nothing is left."""
    compression_error: float | None
    """(r - r_e) / r: positive where too few weights went."""
    base: str
    """Of what n counts: all parameters (`whole`), or the prunable weights alone (`prunable`)."""
    collapsed: tuple[str, ...]
    """Layers of which nothing is left."""
    macs: int
    """Multiply-accumulates with weights that are left; what has no masks counts in full."""
    pattern: str | None = None
    """So many of each few neighbours stay, as in `2:4`."""
    semi_structured: str | None = None
    """What became of the check that kernels for such a pattern take the weights."""

    @property
    def kept(self) -> int:
        """How many of the prunable weights are left."""
        return sum(layer.kept for layer in self.layers)

    @property
    def size(self) -> int:
        """How many prunable weights there are."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True)
class Notice:
    """Something the user should know. `kind` is for programs, `text` for people."""

    kind: str
    text: str


@dataclass(frozen=True)
class Environment:
    """What it ran on. Never user names, paths or variables."""

    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """Everything that is said of a pruned model."""

    title: str
    """What was pruned, as in `resnet20.th`."""
    layers: tuple[LayerChange, ...]
    totals: Totals
    accuracy_before: Accuracy | None = None
    accuracy_after: Accuracy | None = None
    parity: tuple[ParityCheck, ...] = ()
    recovery: Recovery | None = None
    training: TrainingFacts | None = None
    masks: MaskFacts | None = None
    onnx: OnnxCheck | None = None
    scores: ScoreFacts | None = None
    models: tuple[ComparedModel, ...] = ()
    """The files compared, the dense one first: two, or more on the way to the last."""
    latency: LatencyFacts | None = None
    trade_off: TradeOff | None = None
    """What a sweep of the dense model found."""
    files: tuple[WrittenFile, ...] = ()
    settings: Mapping[str, Json] = field(default_factory=dict)
    """Method, budget, scope, seed, sample... in the order to show them."""
    warnings: tuple[Notice, ...] = ()
    environment: Environment | None = None

    def time_left(self, runtime: Literal["pytorch", "onnxruntime"]) -> float | None:
        """Return the time of the last model, divided by that of the first; None where one was not timed."""
        if len(self.models) < 2 or getattr(self.models[0], runtime) is None:
            return None
        timing: Timing | None = getattr(self.models[-1], runtime)
        return timing.ratio if timing is not None else None

    def to_json(self) -> str:
        """Return the versioned JSON text, ending in a newline."""
        return json.dumps({"version": REPORT_VERSION, **to_plain(self)}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "report") -> Report:
        """Read what `to_json` wrote.

        Raises:
            InputError: when it is no report, or was written by a newer prunecli.
        """
        try:
            return from_plain(cls, read_versioned(text, REPORT_VERSION, f"`{where}`"))
        except VersionError as error:
            raise InputError(f"{error} Expected a report that `prunecli prune` wrote.") from None
        except (FieldError, RecursionError) as error:
            raise InputError(f"`{where}`: {error}.") from None
