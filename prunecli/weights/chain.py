"""Neighbours as published code has them: the layers next to each other in the order of the modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.weights.flows import Source
from prunecli.weights.layers import Layout, names_of_parameters
from prunecli.weights.neighbours import TINY, Around
from prunecli.weights.network import Network


def chained(network: Network, with_norms: bool) -> dict[str, Around]:
    """Return what stands around each weight if each layer feeds the next in the order of the modules.

    Counts that do not fit each other, as at the projections of a residual network, make a factor of 1.

    Args:
        network: The model.
        with_norms: Count the scale of a batch normalisation that follows a layer.
    """
    names = names_of_parameters(network.model, network.structure)
    layers: list[tuple[Tensor, Layout]] = []
    scales: dict[int, Tensor] = {}
    for module in network.model.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            groups = module.groups if isinstance(module, _ConvNd) else 1
            layers.append((module.weight, Layout(groups, isinstance(module, _ConvTransposeNd))))
        elif isinstance(module, _BatchNorm) and with_norms and layers and module.running_var is not None:
            scales.setdefault(len(layers) - 1, _scale(module))
    made = [layout.output_energies(weight) for weight, layout in layers]
    scaled = [_scaled(each, scales.get(place)) for place, each in enumerate(made)]
    read = [layout.input_energies(weight) for weight, layout in layers]
    around = {}
    for place, (weight, layout) in enumerate(layers):
        source = Source.of(made[place])
        if place + 1 < len(layers) and len(read[place + 1]) % len(made[place]) == 0:
            readers = read[place + 1].reshape(len(made[place]), -1).sum(1)
            source.credit(_scaled(readers, scales.get(place)), torch.ones_like(source.is_read))
        before = scaled[place - 1] if place else torch.ones(1)
        fits = len(read[place]) % len(before) == 0
        inputs = before.repeat_interleave(len(read[place]) // len(before)) if fits else None
        around[names[id(weight)]] = Around(
            layout, torch.ones_like(read[place]) if inputs is None else inputs.to(read[place]), source
        )
    return around


def _scale(norm: _BatchNorm) -> Tensor:
    """Return the squared scale of a batch normalisation."""
    assert norm.running_var is not None
    scale = 1 / (norm.running_var.double() + TINY)
    return scale if norm.weight is None else scale * norm.weight.detach().double().square()


def _scaled(energies: Tensor, scale: Tensor | None) -> Tensor:
    return energies if scale is None or len(scale) != len(energies) else energies * scale
