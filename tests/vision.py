"""Small transformers of torchvision, built by their own classes; a spec may name this file."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

SIZE = 64
"""Height and width of their pictures."""

_SWIN = partial(SwinTransformer, [4, 4], 24, [2, 2], window_size=[4, 4], num_classes=5)


def swin() -> nn.Module:
    """Two stages of a plain and a shifted block; as many heads as a window is wide."""
    return _SWIN([4, 8])


def swin_v2() -> nn.Module:
    """As `swin`, with heads as large as they are many."""
    return _SWIN([2, 6], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def maxvit() -> nn.Module:
    """Two blocks of a convolution, attention in windows and attention in a grid."""
    return MaxVit((SIZE, SIZE), 8, 2, [16, 32], [1, 1], 8, 0.0, num_classes=5)


def vit() -> nn.Module:
    """Two encoder layers."""
    return VisionTransformer(SIZE, 16, 2, 4, 24, 48, num_classes=5)


ALL = (swin, swin_v2, maxvit, vit)
