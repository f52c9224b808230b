"""Size-explicit twins of modules whose own code allows no other size than the one they were built with.

A twin is a subclass with another `forward`; installing it changes the class of an instance in place
and nothing else, so parameters, their names and every other attribute stay. Each class here stands
alone on torch, because its source is also written into stand-alone loaders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn

from prunecli.graph.copying import walk
from prunecli.graph.window_twins import (
    SizedRelativePositionalMultiHeadAttention,
    SizedShiftedWindowAttention,
    SizedShiftedWindowAttentionV2,
)


class SizedMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` that reads its sizes from `num_heads` and `head_dim`.

    The attention keeps the scale of the dense head size (`scale`), so that removing part of a head
    leaves the rest of its scores unchanged.
    """

    scale: float

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """False keeps the fused encoder kernel, which knows only dense sizes, from being chosen."""
        return False

    def keep_dense_sizes(self) -> None:
        """Note the scale of the dense heads."""
        self.scale = self.head_dim**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, for batched or unbatched inputs. See `nn.MultiheadAttention.forward`."""
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (each.unsqueeze(0) for each in (query, key, value))
        elif not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        heads = [
            F.linear(each, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for each, (weight, bias) in zip((query, key, value), self._projections(), strict=True)
        ]
        mask = self._mask(attn_mask, key_padding_mask, heads[0])
        mixed, weights = self._attend(heads[0], heads[1], heads[2], mask, need_weights)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not is_batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        if weights is None:
            return out, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return out, weights if is_batched else weights.squeeze(0)

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
        masks = []
        if attn_mask is not None:
            per_head = attn_mask.dim() == 3
            masks.append(attn_mask.unflatten(0, (-1, self.num_heads)) if per_head else attn_mask)
        if padding is not None:
            masks.append(padding.view(-1, 1, 1, padding.shape[-1]))
        total = None
        for mask in masks:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, float("-inf"))
            total = mask if total is None else total + mask
        return total

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, scale=self.scale
            )
            return mixed, None
        scores = (query * self.scale) @ key.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        return F.dropout(weights, dropout, self.training) @ value, weights


TWINS: Final[Mapping[str, type[nn.Module]]] = {
    twin.__name__: twin
    for twin in (
        SizedMultiheadAttention,
        SizedShiftedWindowAttention,
        SizedShiftedWindowAttentionV2,
        SizedRelativePositionalMultiHeadAttention,
    )
}
"""Class name -> twin. `keep_dense_sizes` of a twin runs once, when it takes the place of a dense module."""

_TWIN_OF: Final[Mapping[str, str]] = {
    f"{nn.MultiheadAttention.__module__}.MultiheadAttention": "SizedMultiheadAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "SizedShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "SizedShiftedWindowAttentionV2",
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": (
        "SizedRelativePositionalMultiHeadAttention"
    ),
}
"""Full name of a class -> class name of its twin. Names, so that nothing is imported to look for them."""


def find_rewritable(model: nn.Module) -> dict[str, str]:
    """Return the modules that a twin exists for: name -> class name of the twin."""
    found = {}
    for name, module in walk(model):
        twin = _TWIN_OF.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if isinstance(module, nn.MultiheadAttention) and (module.bias_k is not None or module.add_zero_attn):
            continue
        if twin is not None:
            found[name] = twin
    return found


def sizes_of(module: nn.Module) -> tuple[str, ...] | None:
    """Return the attributes of a twin that hold sizes, or None where nobody says which they are."""
    return getattr(type(module), "SIZES", None) if type(module) in TWINS.values() else None


@contextmanager
def installed(model: nn.Module, rewritten: Mapping[str, str]) -> Iterator[None]:
    """Lend the named modules the classes of their twins, and give them back their own."""
    own = {name: type(model.get_submodule(name)) for name in rewritten}
    lent = {name: twin for name, twin in rewritten.items() if own[name].__name__ != twin}
    attributes = {name: dict(vars(model.get_submodule(name))) for name in lent}
    try:
        install(model, lent)
        yield
    finally:
        for name, before in attributes.items():
            module = model.get_submodule(name)
            module.__class__ = own[name]
            vars(module).clear()
            vars(module).update(before)


def install(model: nn.Module, rewritten: Mapping[str, str]) -> None:
    """Change the class of the named modules to their twins, in place.

    Raises:
        KeyError: no such module, or no such twin.
    """
    for name, twin in rewritten.items():
        module = model.get_submodule(name)
        module.__class__ = TWINS[twin]
        module.keep_dense_sizes()  # type: ignore[operator]  # every twin has it
