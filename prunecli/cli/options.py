"""Every option, described once. Types and defaults are those of the groups in pipeline/settings.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from prunecli.cli.grouping import Described, Panel, grouped
from prunecli.pipeline.settings import (
    Budget,
    Compared,
    Decision,
    Directed,
    Drawn,
    Files,
    Importance,
    JudgedData,
    Machine,
    Ranking,
    Recovery,
    Run,
    Samples,
    Source,
    Start,
    Steps,
    Study,
    Swept,
    SweptFiles,
    SweptRecipe,
    SweptStart,
    SweptWeights,
    TrainedFiles,
    TrainingData,
    Weights,
)
from prunecli.recipe import Recipe

FormatName = Literal["table", "json", "csv", "md"]

CheckpointPath = Annotated[
    str,
    typer.Argument(
        help="Parameters of the model: a PyTorch or safetensors file, or a file that prunecli wrote.",
        metavar="CKPT",
        show_default=False,
    ),
]


OptionalCheckpoint = Annotated[
    str | None,
    typer.Argument(
        help="Parameters of the model: a PyTorch or safetensors file, or a file that prunecli wrote. "
        "None with `--at-init`.",
        metavar="[CKPT]",
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
        "train_data": Described("What training trains on. Overrides the spec.", metavar="SOURCE"),
        "test_data": Described(
            "Labelled samples that accuracy is measured on. Overrides the spec.", metavar="SOURCE"
        ),
        "samples": Described("Use that many samples, drawn with the seed. Default: all.", metavar="N", min=1),
        "batch_size": Described(
            "Samples per minibatch. Scores made of squared gradients depend on it; weights are scored on "
            "batches of 128 unless you say otherwise.",
            metavar="N",
            min=1,
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
            "Precision that models run in: float32, float64, bfloat16 (bf16), float16 (fp16); auto is the "
            "checkpoint's, but at least float32. Training in half precision keeps parameters as they are, "
            "and so do the files.",
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
        "granularity": Described(
            "What is scored and removed: whole units, or single weights, which become zeros.",
            metavar="unit|weight",
        ),
        "preset": Described(
            "Settings that go together, where you set no others: `best` scores by `fisher`, ranks by score "
            "per cost and re-solves layers; `rank` is rank-based pruning in training (`--schedule "
            "contribution`) as its paper has it, `rank-code` as its authors' code has it.",
            metavar="best|rank|rank-code|...",
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
        "ratio": Described(
            "Compression ratio of `--granularity weight`, such as 32: one parameter of 32 stays.", metavar="R"
        ),
        "scope": Described("Rank over the whole model, or within each layer.", metavar="global|layer"),
        "rank": Described(
            "Rank by score, or by score per cost. auto is score for units, else score-per-cost.",
            metavar="auto|score|score-per-cost",
        ),
        "min_keep": Described(
            "Keep at least that many units, or that share, of each group (1 by default); or weights of each "
            "layer (0 by default).",
            metavar="N|SHARE",
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
WEIGHTS = Panel(
    "Single weights",
    {
        "score_batches": Described(
            "Batches that weights are scored on. Default: as many as the method wants, most often one.",
            metavar="N",
            min=1,
        ),
        "ratio_base": Described(
            "What `--ratio` and `--keep` are a share of: all parameters, or the prunable weights.",
            metavar="whole|prunable",
        ),
        "mask_rule": Described(
            "Mask exactly as many weights as asked for, or, as some published code does, those whose score "
            "lies between -t and t.",
            metavar="exact|two-sided",
        ),
        "pattern": Described(
            "Keep N of every M weights in a row, such as `2:4`, which some GPUs run faster.", metavar="N:M"
        ),
        "prune_classifier": Described("Prune the layers that the outputs come from too."),
        "no_collapse": Described("Fail where a layer would have no weight left, instead of warning."),
        "collapse_to_units": Described(
            "Take out the units whose weights are all gone, so that the network gets smaller."
        ),
    },
)
START = Panel(
    "Start",
    {
        "at_init": Described("Prune a new model with random weights; `--spec` says which."),
        "init": Described(
            "Weights of a new model: as its code draws them, or from Xavier's normal distribution; auto is "
            "xavier for `snip` and `snip-grad`.",
            metavar="auto|keep|xavier",
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
            "dense model; labels are not looked at.",
            ("--reconstruct/--no-reconstruct",),
        ),
        "recovery_samples": Described(
            "Samples for either, at most; `--max-memory` may allow fewer.", metavar="N", min=2
        ),
    },
)
STEPS = Panel(
    "Step by step",
    {
        "steps": Described(
            "Prune in so many steps while the model trains on, scored by its own gradients. "
            "0: at once, without training.",
            metavar="N",
            min=0,
        ),
        "step_units": Described(
            "Instead of --steps: remove that many units each time, a number or a share of all, such as `2%`.",
            metavar="N|SHARE",
        ),
        "prune_every": Described("Minibatches between two steps.", metavar="N", min=1),
        "score_momentum": Described(
            "How much earlier scores count at each step; 0: not at all.", metavar="SHARE"
        ),
        "max_loss": Described(
            "Stop pruning for good once the mean training loss since the last step exceeds this.",
            metavar="LOSS",
        ),
        "fixed_criterion": Described("Score once, before the first step, and never again."),
        "tune": Described(
            "Train while pruning; without, the weights stay as they are.", ("--tune/--no-tune",)
        ),
        "physical_every": Described(
            "Steps after which silenced units are really taken out; 0: at the end. The result is the same.",
            metavar="N",
            min=0,
        ),
    },
)
RECIPE = Panel(
    "Training",
    {
        "epochs": Described("How often each training sample is seen.", metavar="N", min=0),
        "optimizer": Described("SGD with momentum, Adam or AdamW.", metavar="sgd|adam|adamw"),
        "lr": Described("The highest learning rate.", metavar="RATE"),
        "lr_schedule": Described(
            "How the rate falls: along a cosine to zero, in steps, not at all, or one cycle up and down.",
            metavar="cosine|step|constant|onecycle",
        ),
        "lr_step": Described("Epochs between two drops of `--lr-schedule step`.", metavar="N", min=1),
        "lr_gamma": Described("What each of these drops multiplies the rate by.", metavar="FACTOR"),
        "warmup": Described("Epochs in which the rate rises from nearly zero.", metavar="EPOCHS"),
        "momentum": Described("Momentum of SGD; of Adam and AdamW, the first beta.", metavar="SHARE"),
        "nesterov": Described("Nesterov's form of the momentum.", ("--nesterov/--no-nesterov",)),
        "second_beta": Described("The second beta of Adam and AdamW.", metavar="SHARE"),
        "weight_decay": Described("Weight decay; biases and normalisations are spared.", metavar="DECAY"),
        "decay_all": Described("Let weight decay act on biases and normalisations too."),
        "label_smoothing": Described("Share of the label spread over all classes.", metavar="SHARE"),
        "clip": Described("Largest norm of the gradients.", metavar="NORM"),
        "accumulate": Described("Minibatches whose gradients make one step.", metavar="N", min=1),
        "augment": Described(
            "Random changes to pictures, such as `crop,flip` or `crop=4,flip,randaugment,cutmix`.",
            metavar="NAMES",
        ),
        "ema": Described(
            "Keep a running average of the parameters with this decay, such as 0.999; it is what is saved.",
            metavar="DECAY",
        ),
        "distill": Described(
            "Let the model learn from the answers of the dense one, too.", metavar="CHECKPOINT"
        ),
        "distill_temperature": Described("By which answers are softened.", metavar="T"),
        "distill_weight": Described("Share of the loss that comes from these answers.", metavar="SHARE"),
        "patience": Described(
            "End a stretch of training after so many epochs without improvement on the test data.",
            metavar="N",
            min=1,
        ),
        "channels_last": Described("Lay images out with channels last, which is faster on many machines."),
        "workers": Described("Processes that read and augment samples.", metavar="N", min=0),
    },
)
SWEPT = Panel(
    "Sweep",
    {
        **BUDGET.options,
        "keep": Described(
            "Shares of the units, or weights, to keep, such as `1,0.5,25%`. Repeatable.", metavar="SHARES"
        ),
        "target": Described(
            "What smaller models may cost, such as `macs=0.5,macs=0.25`. Repeatable.", metavar="WHAT=AMOUNT"
        ),
        "ratio": Described(
            "Compression ratios of `--granularity weight`, such as `1,2,4,8`. Repeatable.", metavar="R,..."
        ),
        "seeds": Described(
            "Do everything so many times, with seeds from `--seed` on; what is shown is the mean and the "
            "spread.",
            metavar="N",
            min=1,
        ),
        "jobs": Described(
            "Trials at a time, each in a process of its own with one thread, unless `--threads` says more; "
            "GPUs are shared out.",
            metavar="N",
            min=1,
        ),
    },
)
COMPARED = Panel(
    IMPORTANCE.title,
    {
        **IMPORTANCE.options,
        "method": Described(
            "What to compare, such as `magnitude,magnitude@layer,random`: NAME@SCOPE has a scope of its own, "
            "`all` is every method of units but the oracles; of weights, those of the usual comparison, four "
            "of them in both scopes. Repeatable.",
            metavar="NAMES",
        ),
        "method_arg": Described(
            "A setting of those of the methods that have it. Repeatable.", metavar="NAME=VALUE"
        ),
    },
)
SWEPT_START = Panel(
    START.title,
    {
        "at_init": Described("Prune new models with random weights, one for each seed; `--spec` says which."),
        "init": Described(
            "Weights of new models, the same for all methods: as their code draws them, or from Xavier's "
            "normal distribution.",
            metavar="keep|xavier",
        ),
    },
)
RUN = Panel(
    "Run",
    {
        "resume": Described("Go on with the run in NAME.run, which was stopped or killed."),
        "take": Described(
            "Which epoch's model to write; auto is the last, with --patience the best on the test data.",
            metavar="auto|last|best",
        ),
    },
)
DIRECTED = Panel(
    "Schedule",
    {
        "schedule": Described(
            "What happens to the model while it trains; `prunecli schedules` lists them.", metavar="NAME"
        ),
        "schedule_arg": Described("A setting of the schedule. Repeatable.", metavar="NAME=VALUE"),
    },
)
FILES = Panel(
    "Files",
    {
        "out": Described(
            "A folder, or a .safetensors path whose name the ONNX file and the report share. "
            "Default: NAME.pruned.*, NAME.finetuned.* or NAME.trained.* beside the checkpoint or the spec.",
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
SWEPT_FILES = Panel(
    FILES.title,
    {
        **FILES.options,
        "out": Described("A folder. Default: that of the checkpoint or the spec.", metavar="FOLDER"),
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
        Weights: WEIGHTS,
        Start: START,
        Drawn: START,
        Decision: DECISION,
        Recovery: RECOVERY,
        Files: FILES,
        TrainingData: DATA,
        JudgedData: DATA,
        Ranking: IMPORTANCE,
        TrainedFiles: FILES,
        Steps: STEPS,
        Recipe: RECIPE,
        Run: RUN,
        Directed: DIRECTED,
        Compared: COMPARED,
        Swept: SWEPT,
        SweptStart: SWEPT_START,
        SweptWeights: WEIGHTS,
        SweptRecipe: RECIPE,
        SweptFiles: SWEPT_FILES,
        Style: SHOWN,
        Shown: SHOWN,
    }
)
