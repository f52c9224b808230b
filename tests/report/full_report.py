"""A report in which every field is filled, for all that renders reports."""

from __future__ import annotations

from prunecli.history import EpochRow
from prunecli.report import (
    Accuracy,
    Change,
    Environment,
    LayerChange,
    LayerFacts,
    MaskedLayer,
    MaskFacts,
    ModelFacts,
    Notice,
    OnnxCheck,
    ParityCheck,
    PhaseFacts,
    RecoveredLayer,
    Recovery,
    Report,
    Totals,
    TrainingFacts,
    WrittenFile,
)
from prunecli.report.distributions import Box, GroupScores, ScoreFacts
from prunecli.report.points import Point, Spread, TradeOff
from prunecli.report.values import ComparedModel, LatencyFacts, Timing

_NAMES = ("features.stem.conv", "features.stem.norm", "features.stages.0.blocks.1.conv", "classifier")
_KINDS = ("Conv2d", "BatchNorm2d", "Conv2d", "Linear")
_WIDTHS = ((16, 16, 32, 10), (16, 16, 20, 10), (12, 12, 16, 10))
"""Of each layer, in each model."""


def full_report() -> Report:
    """Return a report of three models, from a dense one to one that was pruned twice and trained on."""
    models = tuple(map(_model, range(3)))
    first, last = models[0].facts, models[-1].facts
    return Report(
        title="digits.safetensors",
        layers=_layers(first, last),
        totals=Totals(
            params=Change(first.params, last.params),
            macs=Change(first.macs, last.macs),
            parameter_bytes=Change(first.parameter_bytes, last.parameter_bytes),
            units=Change(48, 28),
            file_bytes=Change(models[0].file_bytes, models[-1].file_bytes),
            peak_activation_bytes=Change(4096, 3072),
        ),
        accuracy_before=models[0].accuracy,
        accuracy_after=models[-1].accuracy,
        parity=(
            ParityCheck("structure", 1.1e-15, 1e-9, "float64"),
            ParityCheck("numbers", 1.3e-7, 1e-4, "float32"),
        ),
        recovery=_recovery(),
        training=_training(),
        masks=_masks(),
        onnx=OnnxCheck(6.3e-7, (1, 2, 3), True, 20, ("One output is constant.",)),
        scores=_scores(),
        models=models,
        latency=LatencyFacts(batch_size=1, runs=30, device="cpu", threads=1),
        trade_off=_trade_off(),
        files=(WrittenFile("digits.pruned.safetensors", 18_000, "ab" * 32),),
        settings={
            "method": "taylor-fo",
            "budget": "macs=0.5",
            "scope": "global",
            "seeds": [0, 1],
            "ignore": [],
            "recipe": {"lr": 0.01, "epochs": 4},
        },
        warnings=(
            Notice("near-collapse", "Less than 10% of the units are left: features.stem.conv 1/16."),
            Notice("widths", "1 of 2 widths cut is no multiple of 8. See `--round-to`."),
        ),
        environment=Environment("cpu", {"prunecli": "0.1.0", "torch": "2.10.0"}),
    )


def _model(number: int) -> ComparedModel:
    widths = _WIDTHS[number]
    layers = tuple(
        LayerFacts(name, kind, width, 40 * width, 0 if kind == "BatchNorm2d" else 900 * width, 4 * 49 * width)
        for name, kind, width in zip(_NAMES, _KINDS, widths, strict=True)
    )
    pruned = {"method": "taylor-fo", "budget": f"keep={1 - 0.25 * number}"}
    is_onnx = number == 2
    return ComparedModel(
        name=("digits.safetensors", "digits.half.safetensors", "digits.small.onnx")[number],
        read_as=("safetensors", "pruned file", "ONNX")[number],
        sha256=f"{number + 1}2345678" * 8,
        file_bytes=13_000 - 3_000 * number,
        facts=ModelFacts(layers, 160 * sum(widths), ("aten::fancy",), 4096 - 512 * number),
        accuracy=Accuracy(360, 0.1 + 0.05 * number, 0.975 - 0.0125 * number, 1.0),
        pytorch=None if is_onnx else Timing(0.9, 1.0 - 0.25 * number, 1.3, 1.0 - 0.25 * number),
        onnxruntime=Timing(0.3, 0.4 - 0.1 * number, 0.5, 1.0 - 0.25 * number),
        method=pruned if number else {},
        parents={"digits.safetensors": "12345678" * 8} if number else {},
    )


def _layers(first: ModelFacts, last: ModelFacts) -> tuple[LayerChange, ...]:
    return tuple(
        LayerChange(
            old.name,
            old.kind,
            Change(old.units or 0, new.units or 0),
            Change(old.params, new.params),
            Change(old.macs, new.macs),
            Change(old.activation_bytes or 0, new.activation_bytes or 0),
        )
        for old, new in zip(first.layers, last.layers, strict=True)
    )


def _recovery() -> Recovery:
    layers = (
        RecoveredLayer("features.stages.0.blocks.1.conv", 0.3, 0.1),
        RecoveredLayer("classifier", 0.2, 0.05),
    )
    return Recovery(
        method="reconstruct",
        samples=512,
        sample="npz:digits.npz#train[:512]",
        accuracy_before=Accuracy(360, 0.9, 0.8, 0.99),
        layers=layers,
        norms=1,
        notes=("One layer was left as it is.",),
    )


def _training() -> TrainingFacts:
    rows = tuple(
        EpochRow(
            epoch=epoch,
            phase=f"generation {1 + (epoch > 3)}",
            rate=0.1,
            loss=2 / epoch,
            top1=0.5 + 0.05 * epoch,
            test_loss=2.2 / epoch,
            test_top1=0.45 + 0.05 * epoch,
            test_top5=0.99,
            units=48 if epoch <= 3 else 28,
            params=3000,
            macs=60_000,
            density={"features.stem.conv": 0.6 - 0.05 * epoch, "classifier": 0.5 - 0.02 * epoch},
            total_density=0.55 - 0.03 * epoch,
            notes=("units removed",) if epoch == 4 else (),
        )
        for epoch in range(1, 7)
    )
    phases = tuple(
        PhaseFacts(
            name=f"generation {number}",
            epochs=3,
            loss=1 / number,
            units=48 - 20 * (number - 1),
            params=3000,
            macs=60_000,
            top1=0.6,
            test_loss=0.7,
            test_top1=0.6 + 0.1 * number,
            best_top1=0.7,
            density=0.4,
            notes=("20 units removed",) if number == 2 else (),
        )
        for number in (1, 2)
    )
    return TrainingFacts(
        schedule="activation-density",
        batch_size=64,
        phases=phases,
        rows=rows,
        arguments={"generations": 2},
        recipe={"epochs": 6, "lr": 0.1},
        figures={"energy_ratio": 0.5, "densities": [0.4, 0.3]},
    )


def _masks() -> MaskFacts:
    return MaskFacts(
        layers=(MaskedLayer("features.stages.0.blocks.1.conv", 200, 400), MaskedLayer("classifier", 0, 100)),
        ratio=2.0,
        effective_ratio=1.9,
        compression_error=0.05,
        base="prunable",
        collapsed=("classifier",),
        macs=20_000,
        pattern="2:4",
        semi_structured="kernels take the weights",
    )


def _scores() -> ScoreFacts:
    stem = GroupScores(
        name="features.stem.conv",
        units=16,
        kept=12,
        scores=Box(0.01, 0.1, 0.2, 0.4, 0.9),
        ranks=Box(4, 20, 30, 40, 48),
        kept_scores=Box(0.08, 0.2, 0.3, 0.5, 0.9),
        kept_ranks=Box(14, 26, 34, 42, 48),
    )
    gone = GroupScores(
        name="features.stages.0.blocks.1.conv",
        units=32,
        kept=0,
        scores=Box(0.0, 0.05, 0.1, 0.2, 0.5),
        ranks=Box(1, 10, 18, 27, 45),
        kept_scores=None,
        kept_ranks=None,
    )
    return ScoreFacts("taylor-fo", 48, (stem, gone))


def _trade_off() -> TradeOff:
    points = tuple(
        Point(
            method=method,
            scope="global",
            name=method,
            budget=f"keep={keep}",
            ratio=1 / keep,
            seeds=3,
            failed=1,
            error="Nothing is left.",
            top1=Spread(0.9 * keep**place, 0.01, 2),
            top5=Spread(0.99, 0.001, 2),
            loss=Spread(0.3 / keep, 0.02, 2),
            reached=Spread(1 / keep, 0.0, 2),
            compression_error=Spread(0.0, 0.0, 2),
            params_left=Spread(keep, None, 1),
            macs_left=Spread(keep, 0.01, 2),
            collapsed=Spread(0.5, 0.7, 2),
            collapsed_layers=("classifier",),
        )
        for place, method in ((0.1, "taylor-fo"), (0.3, "magnitude"))
        for keep in (0.8, 0.5, 0.25)
    )
    return TradeOff("digits.safetensors", "unit", points)
