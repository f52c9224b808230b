"""Find, cut and prove, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Structure
from prunecli.parity import Parity, verify
from prunecli.plan import Plan
from prunecli.surgery import apply_plan


def random_plan(structure: Structure, share: float = 0.5, seed: int = 0) -> Plan:
    """Return a plan that keeps about `share` of each group, another number in each, units at random."""
    generator = np.random.default_rng(seed)
    keep = {}
    for group in structure.groups:
        count = int(np.clip(round(group.width * share * generator.uniform(0.7, 1.3)), 1, group.width - 1))
        keep[group.name] = tuple(sorted(generator.choice(group.width, count, replace=False).tolist()))
    return Plan(keep, {group.name: group.width for group in structure.groups}, "random")


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that no other has, so that mix-ups show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.3 * torch.rand(buffer.shape, generator=generator))
    return model.eval()


def prune_and_prove(model: nn.Module, args: tuple[Any, ...]) -> tuple[Structure, nn.Module, Parity]:
    """Cut half of each group and prove it. `args` holds two samples."""
    structure = find_groups(model, tuple(arg[:1] for arg in args))
    plan = random_plan(structure)
    pruned = apply_plan(model, structure, plan)
    return structure, pruned, verify(model, pruned, structure, plan, args)
