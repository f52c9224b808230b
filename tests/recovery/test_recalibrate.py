"""Running statistics measured again: against torch's own, and what stays as it was."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from prunecli.recovery import recalibrate_norms


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )


def test_agrees_with_torch() -> None:
    model, batches = network(), [torch.randn(8, 2, 7, 7) for _ in range(3)]
    expected = copy.deepcopy(model)
    update_bn(batches, expected)
    found, norms = recalibrate_norms(model.eval(), [(batch,) for batch in batches])
    assert norms == 2
    for name, tensor in expected.named_buffers():
        torch.testing.assert_close(dict(found.named_buffers())[name], tensor)
    assert [module.momentum for module in found.modules() if isinstance(module, nn.BatchNorm2d)] == [0.3, 0.1]
    assert not found.training


def test_dropout_stays_off_and_the_model_untouched() -> None:
    model = nn.Sequential(nn.Dropout(0.9), network()).eval()
    before = copy.deepcopy(model.state_dict())
    batch = torch.randn(16, 2, 7, 7)
    found, _ = recalibrate_norms(model, [(batch,)])
    torch.testing.assert_close(found[1][1].running_mean, model[1][0](batch).mean((0, 2, 3)))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_norms_or_samples_it_is_a_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    found, norms = recalibrate_norms(model, [(torch.randn(2, 3),)])
    assert norms == 0
    assert torch.equal(found[0].weight, model[0].weight)
    kept, _ = recalibrate_norms(network().eval(), [])
    assert torch.equal(kept[1].running_mean, torch.zeros(4))
