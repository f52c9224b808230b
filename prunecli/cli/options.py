"""Every option, described once. Types and defaults are those of the groups in pipeline/settings.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from prunecli.cli.grouping import Described, Panel, grouped
from prunecli.pipeline.settings import (
    Budget,
    Decision,
    Files,
    Importance,
    Machine,
    Recovery,
    Samples,
    Source,
    Study,
)

FormatName = Literal["table", "json", "csv", "md"]

CheckpointPath = Annotated[
    str,
    typer.Argument(
        help="Parameters of the model: a PyTorch or safetensors file, or a file that prunecli wrote.",
        metavar="CKPT",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Style:
    """How results are written."""

    format: FormatName = "table"
    json: bool = False
    debug: bool = False

    @property
    def style(self) -> FormatName:
        """The format asked for; `--json` is short for `--format json`."""
        return "json" if self.json else self.format


@dataclass(frozen=True)
class Shown(Style):
    """How results are written, and how much is said meanwhile."""

    quiet: bool = False
    verbose: bool = False


MODEL = Panel(
    "Model",
    {
        "spec": Described(
            "How to build, feed and check the model: a TOML file, `torchvision:NAME`, `timm:NAME`, "
            "`package.module:factory` or `path/to/file.py:factory`. Default: the spec inside a prunecli "
            "file, else NAME.toml beside the checkpoint.",
            metavar="SPEC",
        ),
        "spec_arg": Described(
            "An argument of the factory, such as `num_classes=10`. Repeatable.", metavar="NAME=VALUE"
        ),
        "input": Described(
            "Shape of one sample, such as `3x224x224` or `ids=16:int64`. Repeatable.", metavar="SHAPE"
        ),
        "key": Described(
            "Which entry of the checkpoint holds the parameters, where several do.", metavar="KEY"
        ),
        "allow_pickle": Described("Unpickle the checkpoint even if that runs code. For files you trust."),
        "trust_spec": Described("Let the spec inside a prunecli file run code. For files you trust."),
    },
)
DATA = Panel(
    "Data",
    {
        "data": Described(
            "Samples that importance is measured on, such as `npz:train.npz[:1024]`, `imagefolder:DIR` or "
            "`random:256`. Overrides the spec.",
            metavar="SOURCE",
        ),
        "test_data": Described(
            "Labelled samples that accuracy is measured on. Overrides the spec.", metavar="SOURCE"
        ),
        "samples": Described("Use that many samples, drawn with the seed. Default: all.", metavar="N", min=1),
        "batch_size": Described(
            "Samples per minibatch. Scores made of squared gradients depend on it.", metavar="N", min=1
        ),
        "download": Described("Let a data source fetch a dataset that is not there."),
    },
)
MACHINE = Panel(
    "Machine",
    {
        "device": Described(
            "Where the model runs; auto is the first there is of cuda, mps, cpu.", metavar="NAME"
        ),
        "dtype": Described(
            "Precision that importance and accuracy are measured in: float32, float64, bfloat16, float16; "
            "auto is the checkpoint's, but at least float32. The files keep the checkpoint's.",
            metavar="NAME",
        ),
        "threads": Described("CPU threads. Default: what PyTorch chooses.", metavar="N", min=1),
        "max_memory": Described(
            "Memory that activations may take in methods that can do with less: second derivatives and the "
            "oracle, such as 500MB or 4GiB.",
            metavar="SIZE",
        ),
        "seed": Described("Seed of everything random.", metavar="N", min=0),
    },
)
IMPORTANCE = Panel(
    "Importance",
    {
        "method": Described("How importance is measured; `prunecli methods` lists them.", metavar="NAME"),
        "method_arg": Described("A setting of the method. Repeatable.", metavar="NAME=VALUE"),
        "preset": Described(
            "Settings that go together, where you set no others: `best` scores by `fisher`, ranks by score "
            "per cost and re-solves layers; `rank-code` is `contribution` as its authors' code has it.",
            metavar="best|rank-code",
        ),
        "fallback": Described(
            "Score the groups that the method cannot score by this one. Their scores do not compare: "
            "rank with `--scope layer`.",
            metavar="NAME",
        ),
        "score_bn": Described(
            "While scoring, batch normalisation uses its running statistics (eval) or the batch's (train).",
            metavar="eval|train",
        ),
    },
)
STUDY = Panel(
    "Study",
    {
        "against": Described(
            "Say how far the scores agree with those of another method: correlations per layer and over all "
            "layers. `oracle` measures what the loss really changes, and goes on where it was interrupted.",
            metavar="METHOD",
        ),
        "gate": Described(
            "Where gates stand: behind normalisations, or before them, which is for study, not for cutting.",
            metavar="after-bn|before-bn",
        ),
    },
)
BUDGET = Panel(
    "Budget",
    {
        "keep": Described("Share of the units to keep, such as `0.5` or `50%`.", metavar="SHARE"),
        "target": Described(
            "What the smaller model may cost: `macs=0.5`, `params=1.5M`, `units=50%`; a share or a number.",
            metavar="WHAT=AMOUNT",
        ),
        "scope": Described("Rank units over the whole model, or within each layer.", metavar="global|layer"),
        "rank": Described(
            "Rank by score, or by score per cost. auto is score for units, else score-per-cost.",
            metavar="auto|score|score-per-cost",
        ),
        "min_keep": Described(
            "Keep at least that many units, or that share, of each group.", metavar="N|SHARE"
        ),
        "round_to": Described("Round widths up to multiples of this, such as 8.", metavar="N", min=1),
        "ignore": Described(
            "Leave layers alone, by name or pattern, such as `stem.*`. Repeatable.", metavar="PATTERN"
        ),
        "keep_layer": Described(
            "Share of the units of certain layers to keep, such as `layer1.*=0.8`. Repeatable.",
            metavar="PATTERN=SHARE",
        ),
    },
)
DECISION = Panel(
    "Plan",
    {
        "scores": Described("Take the scores from a file of `prunecli score --out`.", metavar="FILE"),
        "apply": Described("Apply a plan made elsewhere or edited by hand; needs no budget.", metavar="FILE"),
        "plan": Described("Write the plan, as JSON.", metavar="FILE"),
        "dry_run": Described("Show what would happen; write no model."),
    },
)
RECOVERY = Panel(
    "Recovery without training",
    {
        "recalibrate_bn": Described(
            "Measure the running statistics of normalisations again on the sample, after the cut."
        ),
        "reconstruct": Described(
            "Re-solve every layer behind the cut by least squares, so that it puts out what it did in the "
            "dense model; labels are not looked at."
        ),
        "recovery_samples": Described(
            "Samples for either, at most; `--max-memory` may allow fewer.", metavar="N", min=2
        ),
    },
)
FILES = Panel(
    "Files",
    {
        "out": Described(
            "A folder, or a .safetensors path whose name the ONNX file and the report share. "
            "Default: NAME.pruned.* beside the checkpoint.",
            metavar="PATH",
        ),
        "onnx": Described("Write an ONNX file and run it against PyTorch.", ("--onnx/--no-onnx",)),
        "verify": Described(
            "Prove the smaller model equal to the masked dense one before anything is written.",
            ("--verify/--no-verify",),
        ),
        "force": Described("Replace files that are there already."),
    },
)
SHOWN = Panel(
    "Output",
    {
        "format": Described("How results are written.", metavar="table|json|csv|md"),
        "json": Described("Short for `--format json`."),
        "quiet": Described("Print only the path written, and no progress.", ("--quiet", "-q")),
        "verbose": Described("Say more on standard error.", ("--verbose", "-v")),
        "debug": Described("Show the traceback of an error."),
    },
)

with_options = grouped(
    {
        Source: MODEL,
        Samples: DATA,
        Machine: MACHINE,
        Importance: IMPORTANCE,
        Study: STUDY,
        Budget: BUDGET,
        Decision: DECISION,
        Recovery: RECOVERY,
        Files: FILES,
        Style: SHOWN,
        Shown: SHOWN,
    }
)
