"""`random` depends on the seed and the group's name, and on nothing else."""

from __future__ import annotations

from dataclasses import replace

import torch

from prunecli.importance import score
from tests.structures import mlp


def test_draws_are_uniform_and_fixed_by_seed_and_name() -> None:
    case = mlp()
    first = score(case.model, case.structure, methods=["random"], seed=1)["random"].by_group
    other = score(case.model, case.structure, methods=["random"], seed=2)["random"].by_group
    alone = replace(case.structure, groups=case.structure.groups[1:])
    assert torch.equal(
        score(case.model, alone, methods=["random"], seed=1)["random"].by_group["2"], first["2"]
    )
    assert not torch.equal(first["2"], other["2"])
    assert not torch.equal(first["0"][:5], first["2"])
    assert all(((values >= 0) & (values < 1)).all() for values in first.values())
