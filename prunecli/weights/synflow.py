"""`synflow`: how much of what flows through the network passes this weight, without any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunecli.errors import ScoreError, UsageError
from prunecli.graph.borrowing import set_mode
from prunecli.graph.copying import copy_module, walk
from prunecli.graph.structure import Role
from prunecli.importance.gradients import explained
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.registry import Granularity, Needs, method
from prunecli.weights.network import Network, WeightScores

FEW = 30
"""With fewer steps than this, layers may be emptied that need not be."""


@method(
    "synflow",
    needs=Needs.PARAMETERS,
    source="Tanaka et al., 2020",
    passes="0",
    granularity=Granularity.WEIGHT,
)
@dataclass(frozen=True)
class SynFlow:
    """Share of the weight in what ones become when they flow through the network of absolute weights.

    score = |w| dR/d|w|, with R the sum of outputs for an input of ones, every parameter its absolute value,
    and biases, shifts and running means zero. Through each layer of a plain chain flows the same, R.

    Weights are pruned in `steps`, scored anew after each: the share that stays falls exponentially. In one
    step, layers are emptied. It runs in float64, which deep networks need, and always in eval mode.
    """

    steps: Annotated[int, "In how many steps weights are pruned."] = 100

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: Naming the argument.
        """
        if self.steps < 1:
            raise UsageError(f"`steps` is a whole number from 1 on, not {self.steps}.")

    def score(self, network: Network, batches: Sequence[MicroBatch]) -> WeightScores:
        """Return the shares.

        Raises:
            ScoreError: The network takes no ones, or what flows overflows float64.
        """
        if "flow" not in network.known:
            network.known["flow"] = _Flow.through(network)
        flow: _Flow = network.known["flow"]
        scores = flow.scores(network)
        if "dry" not in network.known:
            network.known["dry"] = _dry(network, scores)
        return scores

    def notes(self, network: Network) -> tuple[str, ...]:
        """Say where steps are few, and which layers nothing flows through."""
        few = f"{self.steps} steps may empty layers that {FEW} or more would not (`--method-arg steps=100`)"
        dry: list[str] = network.known.get("dry", [])
        more = f" and {len(dry) - 1} more" if len(dry) > 1 else ""
        return (few,) * (self.steps < FEW) + tuple(
            f"nothing flows through `{name}`{more}: some operation stops ones, such as ReLU6 above 6; "
            "all its weights score 0"
            for name in dry[:1]
        )


@dataclass(frozen=True, eq=False)
class _Flow:
    """A copy of the network in float64 with absolute parameters and nothing added, and its input of ones."""

    model: nn.Module
    parameters: Mapping[str, tuple[Tensor, ...]]
    """The copies of the prunable parameters, by name; tied ones may be several."""
    example: tuple[Any, Any]

    @staticmethod
    def through(network: Network) -> _Flow:
        """Copy the network.

        Raises:
            ScoreError: It takes integers.
        """
        added = {
            name for name, axes in network.structure.tensors.items() if axes.role in (Role.BIAS, Role.SHIFT)
        }
        added |= {alias for alias, name in network.structure.aliases.items() if name in added}
        for name, module in network.model.named_modules():
            if isinstance(getattr(module, "running_mean", None), Tensor):
                added |= {f"{name}.running_mean".lstrip("."), f"{name}.bias".lstrip(".")}

        def positive(name: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.detach().clone()
            return (
                torch.zeros_like(tensor, dtype=torch.float64) if name in added else _in_float64(tensor).abs()
            )

        model = copy_module(network.model, positive, _in_float64)
        set_mode(walk(model), training=False)
        copies = dict(model.named_parameters(remove_duplicate=False))
        names: dict[str, list[str]] = {name: [name] for name in network.twins}
        for alias, name in network.structure.aliases.items():
            if name in names:
                names[name].append(alias)
        parameters = {
            name: tuple({id(copies[same]): copies[same] for same in each if same in copies}.values())
            for name, each in names.items()
        }
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for same in parameters.values():
            for parameter in same:
                parameter.requires_grad_(True)
        device = next(iter(network.weights.values())).device
        return _Flow(model, parameters, tree_map(lambda leaf: _ones(leaf, device), network.example))

    def scores(self, network: Network) -> dict[str, Tensor]:
        """Return the scores under the network's masks.

        Raises:
            ScoreError: The network fails in float64, or what flows overflows it.
        """
        with torch.no_grad():
            for name, same in self.parameters.items():
                for parameter in same:
                    parameter.copy_(network.weights[name]).abs_()
                    if network.masks is not None:
                        parameter.mul_(network.masks[name])
        flat = [parameter for same in self.parameters.values() for parameter in same]
        args, kwargs = self.example
        with explained("An input of ones, in float64,"):
            outputs = [
                leaf
                for leaf in tree_leaves(self.model(*args, **kwargs))
                if isinstance(leaf, Tensor) and leaf.is_floating_point()
            ]
            flowing = torch.stack([output.sum() for output in outputs]).sum()
            self._check(flowing)
            gradients = iter(torch.autograd.grad(flowing, flat, materialize_grads=True))
        scores: dict[str, Tensor] = {}
        for name, same in self.parameters.items():
            for parameter in same:
                flow = parameter.detach() * next(gradients)
                scores[name] = scores[name] + flow if name in scores else flow
        return scores

    def _check(self, flowing: Tensor) -> None:
        if not flowing.isfinite():
            raise ScoreError(
                f"What flows through the network for ones sums to {flowing.item()}, in float64 too: it is "
                "too deep for `synflow`, or its parameters hold nan or inf."
            )
        if not flowing.requires_grad:
            raise ScoreError(
                "What flows through the network does not depend on its weights. If forward runs under "
                "torch.no_grad, use a method without gradients (`prunecli methods`)."
            )


def _in_float64(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def _ones(leaf: Any, device: torch.device) -> Any:
    """Return ones in place of an input, in float64."""
    if not isinstance(leaf, Tensor):
        return leaf
    if not leaf.is_floating_point():
        raise ScoreError(
            f"`synflow` sends ones through the network, and an input of this one is {str(leaf.dtype)[6:]}, "
            f"of shape {list(leaf.shape)}: ones would be indices there. Use `lamp`, `snip` or `magnitude`."
        )
    return torch.ones_like(leaf, dtype=torch.float64, device=device)


def _dry(network: Network, scores: WeightScores) -> list[str]:
    """Return the tensors that have weights, and no flow."""
    return [name for name, weight in network.weights.items() if weight.any() and not scores[name].any()]
