"""What is known of two models, as plain numbers that survive a JSON round trip. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from prunecli.errors import InputError
from prunecli.history import EpochRow
from prunecli.strict_json import FieldError, Json, from_plain, to_plain

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


@dataclass(frozen=True)
class ModelFacts:
    """One model: its layers in the order they are built, and what could not be counted."""

    layers: tuple[LayerFacts, ...]
    parameter_bytes: int
    not_counted: tuple[str, ...] = ()
    """Operations whose multiply-accumulates nobody knows."""

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


@dataclass(frozen=True)
class Totals:
    """The whole model, before and after."""

    params: Change
    macs: Change
    parameter_bytes: Change
    units: Change | None = None
    """Prunable units, where the groups are known."""


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
    files: tuple[WrittenFile, ...] = ()
    settings: Mapping[str, Json] = field(default_factory=dict)
    """Method, budget, scope, seed, sample... in the order to show them."""
    warnings: tuple[Notice, ...] = ()
    environment: Environment | None = None

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
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(
                f"`{where}` is not JSON. Expected a report written by `prunecli prune`."
            ) from None
        version = data.pop("version", None) if isinstance(data, dict) else None
        if type(version) is not int or version < 1:
            raise InputError(f"`{where}` is no prunecli report: it has no `version` number.")
        if version > REPORT_VERSION:
            raise InputError(
                f"`{where}` has version {version}, but this prunecli reads up to {REPORT_VERSION}. "
                "Update prunecli."
            )
        try:
            return from_plain(cls, data)
        except (FieldError, RecursionError) as error:
            raise InputError(f"`{where}`: {error}.") from None
