"""Size-explicit twins of torchvision's attention in windows: Swin, Swin v2 and MaxViT.

They are told by name from `twins.py`, so that torchvision is not imported here. Their own code takes the
size of a head from the width of the input (`C // num_heads`), which stops being true once either is cut.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn


class SizedShiftedWindowAttention(nn.Module):
    """`ShiftedWindowAttention` of torchvision, with its sizes read from `num_heads` and `head_dim`.

    The attention keeps the scale of the dense head size. Source: Liu et al., 2021 (Swin Transformer).
    """

    SIZES = ("num_heads", "head_dim")
    qkv: nn.Linear
    proj: nn.Linear
    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    window_size: list[int]
    shift_size: list[int]
    num_heads: int
    head_dim: int
    scale: float
    attention_dropout: float
    dropout: float

    def keep_dense_sizes(self) -> None:
        """Note the size and the scale of the dense heads."""
        self.head_dim = self.qkv.out_features // (3 * self.num_heads)
        self.scale = self.head_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows: [samples, height, width, channels] to the same shape."""
        _, height, width, _ = x.shape
        (down, across), (right, below) = self.window_size, self._padding(height, width)
        x = F.pad(x, (0, 0, 0, right, 0, below))
        _, high, wide, _ = x.shape
        shift = [
            0 if window >= size else by
            for window, size, by in zip(self.window_size, (high, wide), self.shift_size, strict=True)
        ]
        if sum(shift) > 0:
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        windows = x.unflatten(2, (wide // across, across)).unflatten(1, (high // down, down))
        mask = self._mask(high, wide, shift, x) if sum(shift) > 0 else None
        mixed = self._attend(windows.transpose(2, 3).flatten(3, 4).flatten(1, 2), mask)
        mixed = mixed.unflatten(2, (down, across)).unflatten(1, (high // down, wide // across))
        x = mixed.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if sum(shift) > 0:
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width, :].contiguous()

    def _attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend: [samples, windows, places, channels] to the same shape."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(2, 3)
            for part in F.linear(windows, self.qkv.weight, self._qkv_bias()).chunk(3, dim=-1)
        )
        scores = self._scores(query, key) + self._position_bias()
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        weights = F.dropout(weights, self.attention_dropout, self.training)
        mixed = (weights @ value).transpose(2, 3).flatten(3)
        return F.dropout(F.linear(mixed, self.proj.weight, self.proj.bias), self.dropout, self.training)

    def _qkv_bias(self) -> Tensor | None:
        return self.qkv.bias

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        return (query * self.scale) @ key.transpose(-2, -1)

    def _position_bias(self) -> Tensor:
        return self._by_places(self.relative_position_bias_table)

    def _by_places(self, table: Tensor) -> Tensor:
        """Look up pairs of places: [relative positions, heads] to [heads, places, places]."""
        places = self.window_size[0] * self.window_size[1]
        return table[self.relative_position_index].reshape(places, places, -1).permute(2, 0, 1)

    def _padding(self, height: int, width: int) -> tuple[int, int]:
        """Return how many columns and rows are missing to whole windows."""
        return -width % self.window_size[1], -height % self.window_size[0]

    def _mask(self, high: int, wide: int, shift: list[int], like: Tensor) -> Tensor:
        """Keep apart what only the shift brought together: [windows, 1, places, places]."""
        (down, across), regions = self.window_size, []
        for size, window, by in zip((high, wide), self.window_size, shift, strict=True):
            place = torch.arange(size, device=like.device)
            regions.append((place >= size - window).long() + (place >= size - by).long())
        region = 3 * regions[0].unsqueeze(1) + regions[1]
        region = region.unflatten(1, (wide // across, across)).unflatten(0, (high // down, down))
        region = region.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return torch.where(apart, -100.0, 0.0).to(like.dtype).unsqueeze(1)


class SizedShiftedWindowAttentionV2(SizedShiftedWindowAttention):
    """`ShiftedWindowAttentionV2` of torchvision: cosine attention, and a bias that a small network computes.

    Source: Liu et al., 2022 (Swin Transformer V2).
    """

    logit_scale: Tensor
    cpb_mlp: nn.Module
    relative_coords_table: Tensor

    def _qkv_bias(self) -> Tensor | None:
        """Keys have no bias, whatever the parameter holds."""
        bias = self.qkv.bias
        if bias is None:
            return None
        has_bias = torch.tensor([[1.0], [0.0], [1.0]], dtype=bias.dtype, device=bias.device)
        return (bias.reshape(3, -1) * has_bias).flatten()

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        cosines = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        return cosines * self.logit_scale.clamp(max=math.log(100.0)).exp()

    def _position_bias(self) -> Tensor:
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        return 16 * torch.sigmoid(self._by_places(table))


class SizedRelativePositionalMultiHeadAttention(nn.Module):
    """`RelativePositionalMultiHeadAttention` of torchvision's MaxViT, sized by `n_heads` and `head_dim`.

    Its scale is a number that the dense module already keeps. Source: Tu et al., 2022 (MaxViT).
    """

    SIZES = ("n_heads", "head_dim")
    to_qkv: nn.Linear
    merge: nn.Linear
    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    max_seq_len: int
    n_heads: int
    head_dim: int
    scale_factor: float

    def keep_dense_sizes(self) -> None:
        """Do nothing: the dense module keeps them."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows: [samples, windows, places, channels] to the same shape."""
        query, key, value = (
            part.unflatten(-1, (self.n_heads, self.head_dim)).transpose(2, 3)
            for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        places = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = places.unflatten(0, (self.max_seq_len, self.max_seq_len)).permute(2, 0, 1)
        weights = (query @ (key * self.scale_factor).transpose(-2, -1) + bias).softmax(dim=-1)
        mixed: Tensor = self.merge((weights @ value).transpose(2, 3).flatten(3))
        return mixed
