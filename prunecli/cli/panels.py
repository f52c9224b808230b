"""The options of pruning, described once: each group of pipeline/settings.py has its panel in the help."""

from __future__ import annotations

from prunecli.cli import completion
from prunecli.cli.grouping import Described, Panel

MODEL = Panel(
    "Model",
    {
        "spec": Described(
            "How to build, feed and check the model: a TOML file, `torchvision:NAME`, `timm:NAME`, "
            "`hf:FOLDER`, `package.module:factory` or `path/to/file.py:factory`; `auto` takes the model of "
            "torchvision or timm that has the checkpoint's tensors. Default: the spec inside a prunecli "
            "file, else NAME.toml beside the checkpoint.",
            metavar="SPEC",
            complete=completion.specs,
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
MEMORY = Panel(
    "Machine",
    {
        "streaming": Described(
            "Read each tensor of the checkpoint when it is used and let go of it after, for networks that do "
            "not fit into memory: safetensors, on the CPU, by methods that look at no data; no ONNX file."
        ),
    },
)
IMPORTANCE = Panel(
    "Importance",
    {
        "method": Described(
            "How importance is measured; `prunecli methods` lists them.",
            metavar="NAME",
            complete=completion.method_names,
        ),
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
            complete=completion.preset_names,
        ),
        "fallback": Described(
            "Score the groups that the method cannot score by this one. Their scores do not compare: "
            "rank with `--scope layer`.",
            metavar="NAME",
            complete=completion.method_names,
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
            complete=completion.method_names,
        ),
        "gate": Described(
            "Where gates stand: behind normalisations, or before them, which is for study, not for cutting.",
            metavar="after-bn|before-bn",
        ),
        "shard": Described(
            "Part the network among the processes that torchrun started, for one larger than a device.",
            ("--shard",),
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
            complete=completion.choices("macs=", "params=", "units="),
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
        "scores": Described(
            "Take the scores from a file of `prunecli score --out`.",
            metavar="FILE",
            complete=completion.files(".safetensors"),
        ),
        "apply": Described(
            "Apply a plan made elsewhere or edited by hand; needs no budget.",
            metavar="FILE",
            complete=completion.files(".json"),
        ),
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
SHOWN = Panel(
    "Output",
    {
        "format": Described("How results are written.", metavar="table|json|csv|md"),
        "json": Described("Short for `--format json`."),
        "all": Described("Show long tables whole on a terminal too; in a pipe they always are."),
        "quiet": Described("Print only the path written, and no progress.", ("--quiet", "-q")),
        "verbose": Described("Say more on standard error.", ("--verbose", "-v")),
        "debug": Described("Show the traceback of an error."),
    },
)
