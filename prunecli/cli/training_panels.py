"""The options of training, described once: how it goes, what directs it, and what units leave meanwhile."""

from __future__ import annotations

from prunecli.cli import completion
from prunecli.cli.grouping import Described, Panel

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
            "What happens to the model while it trains; `prunecli schedules` lists them.",
            metavar="NAME",
            complete=completion.schedule_names,
        ),
        "schedule_arg": Described("A setting of the schedule. Repeatable.", metavar="NAME=VALUE"),
    },
)
