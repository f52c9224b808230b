"""`activation-density`: train, see how many activations are not zero, size the layers by that, start anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import assert_never

from prunecli.budget.limits import Limit, find_limits
from prunecli.errors import UsageError
from prunecli.graph.copying import named_tensors
from prunecli.graph.structure import Group, Kept, Side, Structure
from prunecli.history import EpochRow
from prunecli.importance.undisturbed import ScoreBN, undisturbed
from prunecli.recipe import RateName
from prunecli.strict_json import Json, from_plain, to_plain
from prunecli.training.complexity import kernels
from prunecli.training.density import Counts, counting, rectified, together
from prunecli.training.generations import Generation, close, figures, has_settled, slope_of
from prunecli.training.schedule import Schedule, schedule
from prunecli.training.sizing import Select, choose
from prunecli.training.training import Phase, Training


class Total(str, Enum):
    """How the densities of layers become one."""

    POOLED = "pooled"  # all activations together
    MEAN = "mean"  # the mean over layers


class Counting(str, Enum):
    """On what activations are counted."""

    TRAIN = "train"  # on the training minibatches, as they pass
    EVAL = "eval"  # on fixed samples after each epoch, in eval mode


class Init(str, Enum):
    """What the next net starts from."""

    REINIT = "reinit"  # new random parameters
    KEEP = "keep"  # the parameters of the units that stay


class Delta(str, Enum):
    """When a net is the final one."""

    FLAT_OR_RISING = "flat-or-rising"  # its density did not fall
    RISING = "rising"  # that of the net after it rose


class Layers(str, Enum):
    """What is counted and cut."""

    CONVS = "convs"
    ALL = "all"  # linear layers too


class DiscoveryRate(str, Enum):
    """The learning rate before the final net."""

    CONSTANT = "constant"
    RECIPE = "recipe"  # it falls as the recipe says


@schedule(
    "activation-density",
    source="Foldy-Porto et al., 2020 (arXiv 2002.02949)",
    prunes=True,
    idle=("keep", "target", "method", "method_arg", "scope", "rank"),
)
@dataclass(eq=False)
class ByDensity(Schedule):
    """Train until the share of activations that are not zero settles, size layers by it, start anew; repeat.

    AE of a layer = outputs of its ReLU above 0 / all of its outputs, over samples, channels and places, of
    one epoch. A generation ends when the AE over all layers changes by less than `rho`. If it fell
    meanwhile (its least-squares slope is below -`tolerance` per epoch), layers are too wide: each gets
    max(1, round(AE * width)) units, and the next generation starts. If not, the net is the final one. It is
    trained for all `--epochs` with the rate that falls as the recipe says; no budget is given.

    AE says how many units stay, not which: they are drawn by lot, and the smaller net starts from new random
    parameters, which the model's own code makes.

    Layers whose outputs are added together (the stage of a residual network) have one width, so their ReLUs
    are counted together. The paper gives each block a width of its own, with a projection around every
    block: the model is to be built so (`sample_models/projected_resnet`). Layers without a ReLU stay whole.
    """

    rho: Annotated[
        float, "A generation ends when its total density changes by less from one epoch to the next."
    ] = 0.001
    patience: Annotated[int, "How many such changes in a row it takes."] = 1
    least: Annotated[int, "Epochs of a generation at least."] = 5
    most: Annotated[int, "Epochs of a generation at most; 0: `--epochs`."] = 0
    tolerance: Annotated[float, "Slopes of the density per epoch, up or down, that are flat."] = 1e-4
    delta: Annotated[Delta, "What ends it: a density that did not fall, or the net before one that rose."] = (
        Delta.FLAT_OR_RISING
    )
    total: Annotated[Total, "The density of all layers: all activations together, or the mean of layers."] = (
        Total.POOLED
    )
    count: Annotated[Counting, "Count while training, or on fixed samples after each epoch."] = Counting.TRAIN
    samples: Annotated[int, "Training samples that `count=eval` looks at; 0: all."] = 0
    layers: Annotated[Layers, "Convolutions, or linear layers too; the model's outputs always stay."] = (
        Layers.CONVS
    )
    select: Annotated[
        Select, "Which units stay: drawn by lot, or the largest weights (with `init=keep`)."
    ] = Select.RANDOM
    init: Annotated[Init, "What a smaller net starts from: new parameters, or those that are left."] = (
        Init.REINIT
    )
    generations: Annotated[int, "Cuts at most; the net after the last one is the final one."] = 3
    rate: Annotated[DiscoveryRate, "The learning rate before the final net: constant, or the recipe's."] = (
        DiscoveryRate.CONSTANT
    )
    final: Annotated[int, "Epochs of the final net; 0: `--epochs`."] = 0

    counts: Counts = field(default_factory=Counts, init=False)
    """Of the epoch that is running."""
    settled: Counts = field(default_factory=Counts, init=False)
    """Of the last epoch."""
    totals: list[float] = field(default_factory=list, init=False)
    """Total density after each epoch of this generation."""
    number: int = field(default=0, init=False)
    """How often was cut."""
    is_final: bool = field(default=False, init=False)
    done: list[Generation] = field(default_factory=list, init=False)
    before: dict[str, NDArray[np.bool_]] = field(default_factory=dict, init=False)
    """The units of the previous generation, where it may turn out to be the final one."""
    weights: dict[str, Tensor] = field(default_factory=dict, init=False)
    """Its parameters, where they are kept."""
    limits: dict[str, Limit] = field(default_factory=dict, init=False)
    """How wide the groups may be that are counted."""

    def check(self, training: Training) -> None:
        """Refuse what contradicts itself, and networks in which nothing can be counted."""
        if self.wishes.budget is not None:
            raise UsageError(
                "`activation-density` finds widths by itself: leave out `--keep` and `--target`."
            )
        self._check_numbers(training)
        if self.select is Select.L1 and self.init is Init.REINIT:
            raise UsageError(
                "`select=l1` says whose parameters stay, and `init=reinit` throws them away. Add "
                "`--schedule-arg init=keep`, or leave it out."
            )
        if self.samples and self.count is Counting.TRAIN:
            raise UsageError("`samples` is for `count=eval`; training counts on all samples anyway.")
        if self.wishes.fresh is None and (self.init is Init.REINIT or self.delta is Delta.RISING):
            raise UsageError(
                "`init=reinit` and `delta=rising` build the model anew, which only works for a new one. Use "
                "`prunecli train`, or `init=keep` and `delta=flat-or-rising`."
            )
        if self.wishes.sample is None and self.count is Counting.EVAL:
            raise UsageError("`count=eval` looks at samples, and there are none.")
        if not self._counted(training):
            more = "" if self.layers is Layers.ALL else " For linear layers, add `--schedule-arg layers=all`."
            raise UsageError(
                "No layer that may be cut has a ReLU behind it: there is no density to size layers by." + more
            )

    def first_phase(self, training: Training) -> Phase:
        """Return the first generation: the whole net."""
        assert training.structure is not None
        whole = [group.name for group in self._in_scope(training.structure) if not rectified(group)]
        if whole:
            training.notes.append(f"no ReLU behind, so kept whole: {', '.join(whole)}")
        return self._phase(training)

    def next_phase(self, training: Training) -> Phase | None:
        """Close a generation; cut, or train the final net."""
        self._close(training)
        if self.is_final:
            return None
        assert training.now is not None
        seed, slope = self._seed(training), slope_of(self.totals)
        kept = choose(
            training.model, training.now, training.present, self.settled, self.limits, self.select, seed
        )
        if self._has_enough(slope):
            goes_back = self.delta is Delta.RISING and self.number > 0
            which = self._settle(training, goes_back)
            training.notes.append(f"density slope {slope:+.2g} per epoch: {which} is the final one")
        elif all((stays == training.kept[name]).all() for name, stays in kept.items()):
            which = self._settle(training, goes_back=False)
            training.notes.append(f"nothing is left to cut: {which} is the final one")
        else:
            self._cut(training, kept)
        self.totals = []
        return self._phase(training)

    def may_stop_early(self, training: Training) -> bool:
        """Only the final net: the others end when their density has settled."""
        return self.is_final

    def watching(self, training: Training) -> AbstractContextManager[Any]:
        """Count what passes."""
        if self.count is Counting.EVAL:
            return nullcontext()
        assert training.now is not None
        return counting(training.model, training.now, self._counted(training), self.counts, training.peers)

    def after_epoch(self, training: Training, row: EpochRow) -> EpochRow:
        """Note the densities, and end the generation where they settled."""
        if self.count is Counting.EVAL:
            self._count_on_samples(training)
        self.settled, self.counts = self.counts, Counts()
        total = self.settled.pooled if self.total is Total.POOLED else self.settled.mean
        self.totals.append(total)
        if not self.is_final and has_settled(self.totals, self.rho, self.patience, self.least):
            training.notes.append(f"total density settled at {total:.4f}")
            training.end_phase()
        elif not self.is_final and training.phase and len(self.totals) == training.phase.epochs:
            training.notes.append(f"total density had not settled after {len(self.totals)} epochs")
        return replace(row, density=self._densities(), total_density=total)

    def tensors(self) -> dict[str, Tensor]:
        """Return what the net before this one was."""
        return {
            **{f"before.{name}": torch.from_numpy(stays) for name, stays in self.before.items()},
            **{f"weights.{name}": tensor for name, tensor in self.weights.items()},
        }

    def plain(self) -> dict[str, Json]:
        """Return counts and what is known of the generations that are over."""
        return {
            "counts": self.counts.plain(),
            "settled": self.settled.plain(),
            "totals": self.totals,
            "number": self.number,
            "is_final": self.is_final,
            "done": to_plain(tuple(self.done)),
        }

    def load(self, training: Training, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on."""
        parts: dict[str, dict[str, Tensor]] = {"before": {}, "weights": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = tensor
        self.before = {name: stays.numpy().astype(np.bool_) for name, stays in parts["before"].items()}
        self.weights = parts["weights"]
        self.counts, self.settled = (Counts.from_plain(plain[name]) for name in ("counts", "settled"))
        self.totals, self.number, self.is_final = plain["totals"], plain["number"], plain["is_final"]
        self.done = [from_plain(Generation, each) for each in plain["done"]]
        self._counted(training)

    def facts(self, training: Training) -> dict[str, Json]:
        """Return every net that was trained, how much smaller it was, and what training cost in all.

        Complexities are in epochs of the dense net. The paper's count is of convolutions on the main path.
        """
        assert training.structure is not None
        return figures(self.done, training.structure, self._epochs(training, is_final=True))

    def _check_numbers(self, training: Training) -> None:
        most = self._epochs(training, is_final=False)
        for name, value, low in (
            ("patience", self.patience, 1),
            ("least", self.least, max(self.patience + 1, 2)),
            ("most", most, self.least),
            ("generations", self.generations, 1),
            ("samples", self.samples, 0),
            ("final", self.final, 0),
            ("rho", self.rho, 0),
            ("tolerance", self.tolerance, 0),
        ):
            if value < low:
                whose = " (`--epochs`)" if name == "most" and not self.most else ""
                raise UsageError(
                    f"`{name}` of `activation-density` is {value}{whose}; at least {low} is needed."
                )

    def _phase(self, training: Training) -> Phase:
        if self.is_final:
            return Phase("final", self._epochs(training, is_final=True))
        rate: RateName | None = "constant" if self.rate is DiscoveryRate.CONSTANT else None
        return Phase(f"generation {self.number}", self._epochs(training, is_final=False), rate)

    def _epochs(self, training: Training, *, is_final: bool) -> int:
        return (self.final if is_final else self.most) or training.recipe.epochs

    def _counted(self, training: Training) -> tuple[str, ...]:
        """Return the groups whose activations are counted; those that are to be ignored are not."""
        if not self.limits:
            assert training.structure is not None
            limits = find_limits(training.structure, self.wishes.constraints)
            self.limits = {
                group.name: limits[group.name]
                for group in self._in_scope(training.structure)
                if rectified(group) and not _stays_whole(limits[group.name], group)
            }
        return tuple(self.limits)

    def _in_scope(self, structure: Structure) -> Iterator[Group]:
        for group in structure.groups:
            if self.layers is Layers.ALL or kernels(structure, group, Side.PRODUCER):
                yield group

    def _count_on_samples(self, training: Training) -> None:
        """Count on samples that are the same after each epoch; each process looks at its batches of them."""
        assert training.now is not None
        assert self.wishes.sample is not None
        names = self._counted(training)
        training.peers.spread(list(training.model.buffers()))  # normalisations go by the first one's
        with (
            undisturbed(training.model, ScoreBN.EVAL, self.wishes.seed),
            torch.no_grad(),
            together(self.counts, names, training.peers) as counts,
        ):
            for inputs, _ in self.wishes.sample(self.samples or None):
                with counting(training.model, training.now, names, counts):
                    training.model(**inputs) if isinstance(inputs, Mapping) else training.model(*inputs)

    def _densities(self) -> dict[str, float]:
        found = ((name, self.settled.density(name)) for name in self.limits)
        return {name: density for name, density in found if density is not None}

    def _close(self, training: Training) -> None:
        """Note what the generation came to."""
        assert training.structure is not None
        assert training.phase is not None
        name = training.phase.name
        self.done.append(
            close(training.structure, training.kept, name, self.number, self.totals, self._densities())
        )

    def _has_enough(self, slope: float) -> bool:
        match self.delta:
            case Delta.FLAT_OR_RISING:
                return slope >= -self.tolerance
            case Delta.RISING:
                return slope > self.tolerance
            case _:
                assert_never(self.delta)

    def _cut(self, training: Training, kept: Kept) -> None:
        """Go on with a smaller net."""
        widths = [f"{name} {int(kept[name].sum())}/{int(training.kept[name].sum())}" for name in kept]
        training.notes.append(
            f"density slope {slope_of(self.totals):+.2g} per epoch, cut: {', '.join(widths)}"
        )
        if self.delta is Delta.RISING:
            self.before = dict(training.kept)
            if self.init is Init.KEEP:
                tensors = named_tensors(training.model)
                self.weights = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._start(training, kept)
        self.number += 1
        self.is_final = self.number == self.generations

    def _settle(self, training: Training, goes_back: bool) -> str:
        """Make the final net ready: this one, or the one before it; return which."""
        self.is_final = True
        if goes_back:
            self._go_back(training)
            return "the net before this one"
        self._start(training, training.kept)
        return "this net"

    def _start(self, training: Training, kept: Kept) -> None:
        """Begin a net of the units that are kept: with new parameters, or with those that are left."""
        match self.init:
            case Init.REINIT:
                assert self.wishes.fresh is not None
                training.start_over(self.wishes.fresh(self._seed(training)), {**training.kept, **kept})
            case Init.KEEP:
                training.drop(kept)
                training.shrink()
            case _:
                assert_never(self.init)

    def _go_back(self, training: Training) -> None:
        assert self.wishes.fresh is not None
        training.start_over(self.wishes.fresh(self._seed(training)), self.before)
        self.number -= 1
        with torch.no_grad():
            for name, tensor in named_tensors(training.model).items():
                if name in self.weights:
                    tensor.copy_(self.weights[name])
        training.replace_model(training.model)

    def _seed(self, training: Training) -> int:
        """Return a seed of its own for what follows each phase."""
        numbers = [self.wishes.seed, training.place.phase_number]
        return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _stays_whole(limit: Limit, group: Group) -> bool:
    return limit.settled and limit.allowed[0] == group.width
