"""The options of sweeps, described once, where they differ from those of pruning."""

from __future__ import annotations

from prunecli.cli import completion
from prunecli.cli.grouping import Described, Panel
from prunecli.cli.panels import BUDGET, FILES, IMPORTANCE, START

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
            complete=completion.method_names,
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
SWEPT_FILES = Panel(
    FILES.title,
    {
        **FILES.options,
        "out": Described("A folder. Default: that of the checkpoint or the spec.", metavar="FOLDER"),
    },
)
