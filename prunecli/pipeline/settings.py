"""What a user can choose, in groups, with the defaults. Plain values: no torch, no files opened.

The command line describes each field as an option of the same name (cli/panels.py); Python code passes
the groups to the stories of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunecli.recipe import Recipe

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "float64", "bfloat16", "float16", "bf16", "fp16"]
ModeName = Literal["eval", "train"]
GateName = Literal["after-bn", "before-bn"]
ScopeName = Literal["global", "layer"]
RankName = Literal["auto", "score", "score-per-cost"]
GranularityName = Literal["unit", "weight"]
BaseName = Literal["whole", "prunable"]
RuleName = Literal["exact", "two-sided"]
InitName = Literal["auto", "keep", "xavier"]
TakeName = Literal["auto", "last", "best"]


@dataclass(frozen=True)
class Source:
    """How the model is built, and how its checkpoint is read."""

    spec: str | None = None
    spec_arg: tuple[str, ...] = ()
    input: tuple[str, ...] = ()
    key: str | None = None
    allow_pickle: bool = False
    trust_spec: bool = False


@dataclass(frozen=True)
class Samples:
    """The data that importance and accuracy are measured on, and those trained on."""

    data: str | None = None
    train_data: str | None = None
    test_data: str | None = None
    samples: int | None = None
    batch_size: int = 64
    download: bool = False


@dataclass(frozen=True)
class Machine:
    """Where and how exactly the model runs."""

    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    threads: int | None = None
    max_memory: str = "2GiB"
    seed: int = 0


@dataclass(frozen=True)
class Memory:
    """How much of the network is in memory at a time."""

    streaming: bool = False


@dataclass(frozen=True)
class Importance:
    """How the importance of units, or of weights, is measured."""

    method: tuple[str, ...] = ("taylor-fo",)
    method_arg: tuple[str, ...] = ()
    granularity: GranularityName = "unit"
    fallback: str | None = None
    preset: str | None = None
    score_bn: ModeName = "eval"


@dataclass(frozen=True)
class Study:
    """What scores are compared with, and where gates stand meanwhile. Not for cutting."""

    against: str | None = None
    gate: GateName = "after-bn"
    shard: bool = False
    """Part the network among the processes that torchrun started."""


@dataclass(frozen=True)
class Budget:
    """How much stays, and what must."""

    keep: str | None = None
    target: str | None = None
    ratio: str | None = None
    """Of weights alone."""
    scope: ScopeName = "global"
    rank: RankName = "auto"
    min_keep: str | None = None
    """None: one unit, or no weight."""
    round_to: int = 1
    ignore: tuple[str, ...] = ()
    keep_layer: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether it is said how much stays."""
        return any(each is not None for each in (self.keep, self.target, self.ratio))


@dataclass(frozen=True)
class Weights:
    """How single weights are masked; nothing of it concerns units."""

    score_batches: int | None = None
    """None: as many as the method wants."""
    ratio_base: BaseName = "whole"
    mask_rule: RuleName = "exact"
    pattern: str | None = None
    prune_classifier: bool = False
    no_collapse: bool = False
    collapse_to_units: bool = False


@dataclass(frozen=True)
class Start:
    """Whether there is a checkpoint to start from, or a new model."""

    at_init: bool = False
    init: InitName = "auto"


@dataclass(frozen=True)
class Drawn:
    """How the weights of a new model are drawn."""

    init: InitName = "auto"

    def as_start(self) -> Start:
        """Return the same among all that may be said of the start."""
        return Start(at_init=True, init=self.init)


@dataclass(frozen=True)
class Decision:
    """Where scores and the plan come from, if they are made already, and whether to stop at the plan."""

    scores: str | None = None
    apply: str | None = None
    plan: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Recovery:
    """How accuracy is won back after the cut, without training."""

    recalibrate_bn: bool = False
    reconstruct: bool = False
    recovery_samples: int = 1024


@dataclass(frozen=True)
class Steps:
    """How units leave step by step, while the model trains."""

    steps: int = 0
    """0: all at once and without training, unless `step_units` says otherwise."""
    step_units: str | None = None
    prune_every: int = 30
    score_momentum: float = 0.9
    max_loss: float | None = None
    fixed_criterion: bool = False
    tune: bool = True
    physical_every: int = 1

    @property
    def are_wanted(self) -> bool:
        """Whether units leave step by step."""
        return self.steps > 0 or self.step_units is not None


@dataclass(frozen=True)
class Run:
    """How a training run is kept, and what is taken from it."""

    resume: bool = False
    take: TakeName = "auto"


@dataclass(frozen=True)
class Directed:
    """Which schedule directs the training."""

    schedule: str = "none"
    schedule_arg: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """What is written, and where."""

    out: str | None = None
    onnx: bool = True
    verify: bool = True
    force: bool = False


@dataclass(frozen=True)
class TrainingData:
    """The data that a model is trained and judged on."""

    train_data: str | None = None
    test_data: str | None = None
    batch_size: int = 64
    download: bool = False

    def as_samples(self) -> Samples:
        """Return the same among all that may be said of data."""
        return Samples(
            train_data=self.train_data,
            test_data=self.test_data,
            batch_size=self.batch_size,
            download=self.download,
        )


@dataclass(frozen=True)
class Ranking:
    """How the importance of units is measured while a model trains, or of weights before."""

    method: tuple[str, ...] = ("taylor-fo",)
    method_arg: tuple[str, ...] = ()
    granularity: GranularityName = "unit"
    preset: str | None = None

    def as_importance(self) -> Importance:
        """Return the same among all that may be said of importance."""
        return Importance(
            method=self.method,
            method_arg=self.method_arg,
            granularity=self.granularity,
            preset=self.preset,
        )


@dataclass(frozen=True)
class JudgedData:
    """The data that models are judged on."""

    test_data: str | None = None
    batch_size: int = 64
    download: bool = False

    def as_samples(self) -> Samples:
        """Return the same among all that may be said of data."""
        return Samples(test_data=self.test_data, batch_size=self.batch_size, download=self.download)


@dataclass(frozen=True)
class TrainedFiles:
    """What is written of a model that was only trained, and where."""

    out: str | None = None
    onnx: bool = True
    force: bool = False


@dataclass(frozen=True)
class Compared:
    """Which methods a sweep sets side by side."""

    method: tuple[str, ...] = ()
    """Names, several in one text with commas between; `NAME@layer` has a scope of its own."""
    method_arg: tuple[str, ...] = ()
    granularity: GranularityName = "unit"
    fallback: str | None = None
    score_bn: ModeName = "eval"


@dataclass(frozen=True)
class Swept:
    """Which budgets a sweep goes through, how often, and what holds for all of them."""

    keep: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    ratio: tuple[str, ...] = ()
    seeds: int = 3
    """How many, from the seed of the machine on."""
    jobs: int = 1
    scope: ScopeName = "global"
    rank: RankName = "auto"
    min_keep: str | None = None
    round_to: int = 1
    ignore: tuple[str, ...] = ()
    keep_layer: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweptWeights:
    """How a sweep masks single weights."""

    score_batches: int | None = None
    ratio_base: BaseName = "whole"
    mask_rule: RuleName = "exact"
    prune_classifier: bool = False

    def as_weights(self) -> Weights:
        """Return the same among all that may be said of weights."""
        return Weights(
            score_batches=self.score_batches,
            ratio_base=self.ratio_base,
            mask_rule=self.mask_rule,
            prune_classifier=self.prune_classifier,
        )


@dataclass(frozen=True)
class SweptStart:
    """What a sweep starts from; of each seed, the same for all methods."""

    at_init: bool = False
    init: Literal["keep", "xavier"] = "keep"

    def as_start(self) -> Start:
        """Return the same among all that may be said of the start."""
        is_usual = not self.at_init and self.init == SweptStart.init
        return Start() if is_usual else Start(self.at_init, self.init)


@dataclass(frozen=True)
class SweptRecipe(Recipe):
    """How a sweep trains what it pruned: by default not at all."""

    epochs: int = 0


@dataclass(frozen=True)
class SweptFiles:
    """What a sweep writes, and where."""

    out: str | None = None
    force: bool = False


@dataclass(frozen=True)
class SweepChoices:
    """Everything that `sweep` can be told."""

    source: Source = Source()
    samples: Samples = Samples()
    start: SweptStart = SweptStart()
    compared: Compared = Compared()
    swept: Swept = Swept()
    weights: SweptWeights = SweptWeights()
    recovery: Recovery = Recovery()
    recipe: SweptRecipe = SweptRecipe()
    machine: Machine = Machine()
    files: SweptFiles = SweptFiles()
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choices:
    """Everything that `prune` can be told; `finetune` and `train` take part of it."""

    source: Source = Source()
    samples: Samples = Samples()
    start: Start = Start()
    importance: Importance = Importance()
    budget: Budget = Budget()
    weights: Weights = Weights()
    decision: Decision = Decision()
    recovery: Recovery = Recovery()
    machine: Machine = Machine()
    memory: Memory = Memory()
    files: Files = Files()
    steps: Steps = Steps()
    recipe: Recipe = Recipe()
    directed: Directed = Directed()
    run: Run = Run()
    given: frozenset[str] = frozenset()
    """The options that were given, as fields are called, even if their values are the defaults."""
