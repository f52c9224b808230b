"""A model on its way: everything that changes while it trains, and how units leave it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prunecli.data import Evaluation
from prunecli.errors import BudgetError
from prunecli.graph.copying import clean_copy, named_tensors
from prunecli.graph.cutting import cut, slice_masks, slice_tensor
from prunecli.graph.restrict import restrict
from prunecli.graph.structure import Kept, Structure
from prunecli.history import EpochRow
from prunecli.peers import ALONE, Peers
from prunecli.recipe import RateName, Recipe
from prunecli.strict_json import Json
from prunecli.training.optimising import Optimising, make_optimising, move_state, state_tensors


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one optimizer and one learning-rate schedule."""

    name: str
    epochs: int
    """How long it is at most; a schedule may end it earlier."""
    lr_schedule: RateName | None = None
    """Instead of the recipe's."""
    trains: bool = True
    """False: the weights stay as they are, and the model runs in eval mode."""


@dataclass
class Tally:
    """Sums over the minibatches of the epoch that is running."""

    loss: float = 0.0
    hits: float = 0.0
    samples: int = 0
    judged: int = 0
    """How many of the samples have a label that is right or wrong."""
    rate: float = 0.0
    """The learning rate at its start."""


@dataclass
class Place:
    """Where a run stands, in whole numbers."""

    step: int = 0
    """Minibatches done, in all."""
    epoch: int = 0
    """Epochs done, in all."""
    batch: int = 0
    """Minibatches done in the epoch that is running."""
    phase_number: int = 0
    phase_epoch: int = 0
    """Epochs done in the phase that is running."""
    is_over: bool = False
    """Whether the schedule has no further phase."""
    best_epoch: int = 0
    """The best epoch of the network as it is now; 0 before there is one."""
    best_value: float | None = None
    """How good it was, on test data; higher is better."""

    def forget_best(self) -> None:
        """Start to look for the best epoch anew: the network is another one."""
        self.best_epoch, self.best_value = 0, None


@dataclass(eq=False)
class Training:
    """Everything that changes while a model trains.

    Units are counted as in the dense model throughout: `kept` says which of them stay, `present` which
    of them are still there physically. Those in between are silenced: their entries in parameters are
    zero after every step, and so is what the optimizer remembers of them (METHODS 1.2).

    Single weights may be masked besides: they are zero, no gradient reaches them, and the optimizer
    remembers nothing of them, so that no step moves them, whatever its momentum and weight decay.
    """

    model: nn.Module
    recipe: Recipe
    steps_per_epoch: int
    """Minibatches in an epoch."""
    structure: Structure | None = None
    """Groups and tensors of the dense model; None where no unit is going to leave."""
    place: Place = field(default_factory=Place)
    tally: Tally = field(default_factory=Tally)
    history: list[EpochRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What happened since the last epoch ended, for its row."""
    planned: int = 0
    """How many epochs there will be, as far as the phase of the last one knows."""
    phase: Phase | None = None
    optimising: Optimising | None = None
    average: AveragedModel | None = None
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    """Keeps small gradients of float16 from vanishing; off in other precisions."""
    evaluate: Callable[[nn.Module], Evaluation | None] = lambda model: None  # noqa: E731
    """Says how good a model is on test data, if there is any: for schedules that measure a cut."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameter -> a bool per weight of the model as it is now, True = keep; changed by `set_masks`."""
    peers: Peers = ALONE
    """The processes that train the same model, each on its part of every minibatch."""

    def __post_init__(self) -> None:
        """Start with all units, and with zeros where the masks (of the dense model) say so."""
        widths = {group.name: group.width for group in self.structure.groups} if self.structure else {}
        self.kept: dict[str, NDArray[np.bool_]] = {
            name: np.ones(width, dtype=bool) for name, width in widths.items()
        }
        self.present = dict(self.kept)
        self.now = self.structure
        """The structure of the model as it is now."""
        self._silenced: list[tuple[str, int, Tensor]] = []
        self.set_masks(self.masks)

    @property
    def judged(self) -> nn.Module:
        """The model that is measured and saved: the running average where there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def result(self) -> nn.Module:
        """What files hold: the judged model, without the units that are only silenced."""
        local = self.local(self.kept)
        if self.now is None or all(stays.all() for stays in local.values()):
            return self.judged
        return cut(self.judged, self.now, local)

    @property
    def result_masks(self) -> dict[str, Tensor]:
        """The masks of the result."""
        return self._masks_of(self.kept)

    @property
    def unit_count(self) -> int:
        """How many units stay."""
        return sum(int(stays.sum()) for stays in self.kept.values())

    def begin(self, phase: Phase) -> None:
        """Start a stretch of training, with a fresh optimizer and schedule."""
        self.place.phase_number += 1
        self.place.phase_epoch = 0
        self.phase = phase
        self._start_optimising()

    def end_phase(self) -> None:
        """Let the phase end with the epoch that is running."""
        assert self.phase is not None
        self.phase = Phase(self.phase.name, self.place.phase_epoch, self.phase.lr_schedule, self.phase.trains)

    def follow_average(self) -> None:
        """Start the running average of the parameters, if the recipe wants one."""
        if self.recipe.ema is not None and self.average is None:
            self.average = self._averaging(self.model)

    def replace_model(self, model: nn.Module) -> None:
        """Go on with other weights in the same shapes, the optimizer's memory gone: begin a phase next.

        What is masked becomes zero in them.
        """
        self.model = model
        self._zero_masked()
        self.place.forget_best()
        if self.average is not None:
            self.average = self._averaging(model)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Set weights to zero for good, and let all others go free that were masked before.

        Args:
            masks: Parameter -> a bool per weight of the dense model, True = keep.

        Raises:
            ValueError: A mask is of another shape than its parameter, or there is no such parameter.
        """
        own = named_tensors(self.model)
        dense = self.structure.tensors if self.structure is not None else own
        _check_shapes(masks, {name: tuple(tensor.shape) for name, tensor in dense.items()})
        self.dense_masks = {name: mask.to(own[name].device) for name, mask in masks.items()}
        self._fit_masks()
        self._zero_masked()

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Let no gradient reach a masked weight: without a memory of it, no optimizer moves it."""
        for name, parameter in self._masked(self.model):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~self.masks[name], 0)

    def start_over(self, model: nn.Module, kept: Kept) -> None:
        """Go on with another dense model, of which `kept` (of all groups) stays: begin a phase next."""
        assert self.structure is not None
        self.peers.agree(_plan_of(kept))
        self.kept = {name: kept[name] for name in self.kept}
        self.present = dict(self.kept)
        self._silenced = []
        self.optimising = None
        self.now = self.structure
        if not all(stays.all() for stays in kept.values()):
            model, self.now = cut(model, self.structure, kept), restrict(self.structure, kept)
        self._fit_masks()
        self.replace_model(model)

    def drop(self, kept: Kept) -> None:
        """Silence every unit that `kept` (dense units) does not keep; it never comes back.

        Where a normalisation or a mean runs over them, silent is not the same as gone: then they go.
        """
        assert self.structure is not None
        assert self.now is not None
        self.peers.agree(_plan_of(kept))
        gone = {name: self.kept[name] & ~stays for name, stays in kept.items() if name in self.kept}
        self.kept = {name: self.kept[name] & kept.get(name, self.kept[name]) for name in self.kept}
        self.place.forget_best()
        self._find_silenced()
        self.silence()
        by_name = self.structure.by_name
        if any(each.any() and by_name[name].changes_statistics for name, each in gone.items()):
            self.shrink()

    def shrink(self) -> None:
        """Take the silenced units out of the model, the optimizer's memory and the average."""
        if self.now is None:
            return
        local = self.local(self.kept)
        if all(stays.all() for stays in local.values()):
            return
        old, structure = self.model, self.now
        self.model = cut(old, structure, local)
        if self.average is not None:
            averaged = self._averaging(cut(self.average.module, structure, local))
            averaged.n_averaged.copy_(self.average.n_averaged)
            self.average = averaged
        if self.optimising is not None:
            sliced = partial(slice_tensor, structure=structure, kept=local)
            move_state(self.optimising.optimizer, old, self.model, lambda name, tensor: sliced(tensor, name))
        self.now = restrict(structure, local)
        self.present = dict(self.kept)
        self._silenced = []
        self._fit_masks()

    def local(self, kept: Kept) -> dict[str, NDArray[np.bool_]]:
        """Return the same choice, counted in the units that are present."""
        return {name: kept[name][present] for name, present in self.present.items()}

    def dense_scores(self, scores: Mapping[str, Tensor], method: str) -> dict[str, Tensor]:
        """Return scores of the units present as scores of all units: -inf for those that do not stay.

        Of several processes, the first one's count.

        Raises:
            BudgetError: a unit that stays has a score that is not finite.
        """
        scores, spread = self.peers.from_first(dict(scores)), {}
        for name in scores:
            present, stays = (torch.from_numpy(table[name]) for table in (self.present, self.kept))
            whole = torch.full((len(present),), -torch.inf, dtype=torch.float64)
            whole[present] = scores[name].double().cpu()
            whole[~stays] = -torch.inf
            if not whole[stays].isfinite().all():
                raise BudgetError(
                    f"`{method}` gives units of `{name}` scores that are not finite. Lower `--lr`, or train "
                    "in float32."
                )
            spread[name] = whole
        return spread

    @torch.no_grad()
    def silence(self) -> None:
        """Set what belongs to silenced units to zero: parameters, optimizer's memory, average."""
        if not self._silenced:
            return
        tables: list[Mapping[str, Tensor]] = [dict(self.model.named_parameters())]
        if self.average is not None:
            tables.append(dict(self.average.module.named_parameters()))
        if self.optimising is not None:
            remembered: dict[str, dict[str, Tensor]] = {}
            for name, key, tensor in state_tensors(self.optimising.optimizer, self.model):
                remembered.setdefault(key, {})[name] = tensor
            tables += remembered.values()
        for table in tables:
            for name, dim, positions in self._silenced:
                if name in table and table[name].ndim > dim:
                    table[name].index_fill_(dim, positions, 0)

    def forget_momentum(self) -> None:
        """Clear everything that the optimizer remembers of the parameters' past."""
        assert self.optimising is not None
        self.optimising.optimizer.state.clear()

    def resume_at(self, kept: Kept, present: Kept) -> None:
        """Bring a fresh run, which has all units, to those of a run that is taken up again."""
        if self.structure is not None:
            names = list(self.kept)  # files keep no order
            self.kept = {name: present[name] for name in names}
            self.shrink()
            self.kept = {name: kept[name] for name in names}
            self._find_silenced()
        if self.phase is not None:
            self._start_optimising()

    def _masks_of(self, kept: Kept) -> dict[str, Tensor]:
        """Return the masks over what these units leave of each parameter."""
        if self.structure is None:
            return self.dense_masks
        return slice_masks(self.dense_masks, self.structure, kept)

    def _fit_masks(self) -> None:
        """Bring the masks to the units that are present."""
        self.masks = self._masks_of(self.present)

    def _masked(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return [(name, each) for name, each in model.named_parameters() if name in self.masks]

    @torch.no_grad()
    def _zero_masked(self) -> None:
        """Set masked weights to zero, and what the optimizer and the average remember of them."""
        models = [self.model, *([self.average.module] if self.average is not None else [])]
        tensors: list[tuple[str, Tensor]] = []
        for model in models:
            tensors += self._masked(model)
        if self.optimising is not None:
            remembered = state_tensors(self.optimising.optimizer, self.model)
            tensors += [(name, each) for name, _, each in remembered if each.ndim and name in self.masks]
        for name, tensor in tensors:
            tensor.masked_fill_(~self.masks[name], 0)

    def _start_optimising(self) -> None:
        assert self.phase is not None
        steps = -(-self.steps_per_epoch // self.recipe.accumulate)
        self.optimising = make_optimising(
            self.model, self.recipe, self.phase.epochs, steps, self.phase.lr_schedule
        )

    def _find_silenced(self) -> None:
        """Find where, in the parameters as they are now, the silenced units lie."""
        assert self.now is not None
        local = self.local(self.kept)
        tensors = named_tensors(self.model)
        self._silenced = []
        for name, tensor in self.now.parameters():
            for dim, axis in enumerate(tensor.axes):
                stays = axis.kept(local) if axis is not None else None
                if stays is not None and not stays.all():
                    positions = torch.from_numpy(np.flatnonzero(~stays)).to(tensors[name].device)
                    self._silenced.append((name, dim, positions))

    def _averaging(self, model: nn.Module) -> AveragedModel:
        assert self.recipe.ema is not None
        return AveragedModel(clean_copy(model), multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema))


def _plan_of(kept: Kept) -> dict[str, Json]:
    """Return what processes agree on before units leave."""
    return {"plan": {name: np.flatnonzero(stays).tolist() for name, stays in kept.items()}}


def _check_shapes(masks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that every mask has its parameter, in its shape."""
    for name, mask in masks.items():
        if shapes.get(name) != tuple(mask.shape):
            found = f"is {list(shapes[name])}" if name in shapes else "is not there"
            raise ValueError(f"the mask of `{name}` is {list(mask.shape)}, and the parameter {found}")
