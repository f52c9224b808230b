"""Layer-wise relevance propagation through the calls of a forward pass, by the z+ rule.

Autograd carries relevance instead of gradients: each call whose gradient is not its relevance gets a
backward pass of its own. What only moves, copies or picks (reshape, cat, max pooling) has the right
one already. Functions that are not in the table are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prunecli.errors import ScoreError
from prunecli.graph.calls import CallWatch
from prunecli.graph.structure import CallKey, Group, Site

Share = Callable[..., tuple[Tensor, ...]]
"""(relevance of the result, saved tensors...) -> relevance of each operand."""
Hear = Callable[[Group, Site, Tensor], None]
"""Hears the relevance that arrives at a site."""

LINEAR = frozenset({"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))})
"""Sums of inputs times weights: shared out by the z+ rule."""
ONE_BY_ONE = frozenset(
    {"relu", "relu_", "relu6", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "prelu"}
    | {"gelu", "silu", "hardswish", "mish", "softplus", "tanh", "tanh_", "threshold", "threshold_"}
)
"""Each output has one input, which gets all its relevance."""
AVERAGES = frozenset(
    {"mean", "sum", "interpolate"} | {f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}
)
"""Weighted sums with weights >= 0: shared out in proportion."""
SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__isub__"})
PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__"})
"""By a number or a parameter only."""
MOVES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "swapaxes", "squeeze"}
    | {
        "unsqueeze",
        "contiguous",
        "clone",
        "chunk",
        "split",
        "cat",
        "concat",
        "stack",
        "__getitem__",
        "narrow",
    }
    | {
        "select",
        "unbind",
        "expand",
        "expand_as",
        "pad",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
    }
    | {"to", "float", "double", "half", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d", "view_as"}
    | {"alpha_dropout", "feature_dropout", "type", "T", "mT", "amax", "max", "roll", "flip", "index_select"}
    | {f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}
    | {f"{kind}max_pool{n}d_with_indices" for kind in ("", "adaptive_") for n in (1, 2, 3)}
)
"""Moved, copied or picked: the gradient is the relevance, and the largest of several takes it all."""
_SMALLEST = 1e-12
"""Sums below this have nothing to share out."""


@dataclass
class _Made:
    """A result of a linear call, and which way the normalisation behind it turns it."""

    version: int
    signs: Tensor | None = None
    """-1 per position of the channels where gamma is negative, shaped to line up; None: none is."""


class Relevance(CallWatch):
    """Runs a forward pass so that the backward pass carries relevance.

    Relevance goes no further than the first units that are listened to: what comes before them, such
    as the preparation of the input, may be anything.

    Args:
        modules: The names of the modules that are running; see `following`.
        sites: Where relevance is listened to.
        hear: Hears the relevance of each site, with its group, during the backward pass.
    """

    def __init__(
        self, modules: Sequence[str], sites: Mapping[CallKey, list[tuple[Group, Site]]], hear: Hear
    ) -> None:
        super().__init__(modules)
        self.sites, self.hear = sites, hear
        self.starts: list[Tensor] = []
        """Where relevance ends."""
        self._made = WeakTensorKeyDictionary()

    def call(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Carry out one call so that relevance finds its way back through it."""
        sites = self.sites.get(key, [])
        operands = list(args)
        for place in {site.operand for _, site in sites if site.operand is not None}:
            here = [each for each in sites if each[1].operand == place]
            # An alias, so that the relevance from other readers of the tensor is not heard here as well.
            operands[place] = self._listen(key, args[place].view_as(args[place]), here)
        result = self._carry_out(key, func, tuple(operands), kwargs)
        made = [each for each in sites if each[1].operand is None]
        if made and not _carries(result) and any(result is arg for arg in args):
            raise _unknown(key, " that makes units in place")
        return self._listen(key, result, made) if made else result

    def _listen(self, key: CallKey, tensor: Any, sites: list[tuple[Group, Site]]) -> Tensor:
        """Return the tensor, so that the relevance that arrives at it is heard."""
        for group, site in sites:
            fits = isinstance(tensor, Tensor) and tensor.dim() >= -site.dim
            if not fits or tensor.shape[site.dim] != site.length:
                raise ScoreError(
                    f"{_where(key)} does not hold the {site.length} positions of `{group.name}` that the "
                    "trace has there. Forward takes another path on real data: use another method."
                )
        if not tensor.requires_grad:
            start = tensor.detach().requires_grad_()
            self.starts.append(start)
            tensor = start.clone()  # which code may write to in place, unlike a leaf
        heard: Tensor = tensor
        heard.register_hook(lambda relevance: self._tell(sites, relevance))
        return heard

    def _tell(self, sites: list[tuple[Group, Site]], relevance: Tensor) -> None:
        for group, site in sites:
            self.hear(group, site, relevance)

    def _carry_out(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        if not any(_carries(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        name = key.function
        if name in LINEAR:
            return self._linear(key, func, args, kwargs)
        if name == "batch_norm":
            return self._batch_norm(key, func, args, kwargs)
        if name in ONE_BY_ONE:
            return self._one_by_one(key, func, args, kwargs)
        if name in AVERAGES:
            return self._average(key, func, args, kwargs)
        if name in SUMS:
            return self._sum(key, func, args, kwargs)
        if name in PRODUCTS:
            return self._one_by_one(key, func, args, kwargs)
        result = func(*args, **kwargs)
        if name in MOVES or not any(_carries(leaf) for leaf in tree_leaves(result)):
            return result
        raise _unknown(key)

    def _linear(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """Share out by the z+ rule. The bias takes no share."""
        if len(args) < 2 or any(_carries(leaf) for leaf in tree_leaves((args[1:], kwargs))):
            raise _unknown(key, " that is called with a weight that depends on data")
        rest = args[3:] if len(args) > 2 else ()
        options = {name: value for name, value in kwargs.items() if name != "bias"}
        weight = args[1].detach()
        made = _Made(version=-1)

        def product(data: Tensor, weight: Tensor) -> Tensor:
            result: Tensor = func(data, weight, None, *rest, **options)
            return result

        def share(relevance: Tensor, data: Tensor) -> tuple[Tensor, ...]:
            return (_z_plus(relevance, data, weight, product, made.signs),)

        result = _apply(lambda: func(*args, **kwargs), share, (args[0],), saved=(args[0],))
        made.version = result._version
        self._made[result] = made
        return result

    def _batch_norm(
        self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Tensor:
        """Let it pass; if a linear call made the input, tell that call which units gamma turns round."""
        data, gamma = args[0], args[3] if len(args) > 3 else kwargs.get("weight")
        made = self._made.get(data)
        if (
            made is not None
            and made.version == data._version
            and gamma is not None
            and bool((gamma < 0).any())
        ):
            signs = torch.where(gamma.detach() < 0, -1.0, 1.0).to(data.dtype)
            made.signs = signs.reshape(-1, *[1] * (data.dim() - 2))
        return self._one_by_one(key, func, args, kwargs)

    def _one_by_one(
        self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Tensor:
        """Give the relevance of each output to its one input."""
        carriers = [leaf for leaf in tree_leaves((args, kwargs)) if _carries(leaf)]
        if len(carriers) > 1:
            raise _unknown(key, " of two tensors that both depend on the units")
        result = _apply(lambda: func(*args, **kwargs), lambda relevance: (relevance,), tuple(carriers))
        if result.shape != carriers[0].shape:
            raise _unknown(key, " that spreads one value over several")
        return result

    def _average(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """Share out in proportion to what points the same way as the result."""

        def share(relevance: Tensor, data: Tensor) -> tuple[Tensor, ...]:
            found = torch.zeros_like(data)
            for part in (data.clamp_min(0), data.clamp_max(0)):
                found += _proportional(relevance, part, lambda x: func(x, *args[1:], **kwargs), data)
            return (found,)

        if not args:
            raise _unknown(key, " that is called with keywords only")
        return _apply(lambda: func(*args, **kwargs), share, (args[0],), saved=(args[0],))

    def _sum(self, key: CallKey, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """Share out in proportion to what points the same way as the result; constants take no share."""
        carriers = [arg for arg in args if _carries(arg)]
        if len(carriers) < 2:
            return self._one_by_one(key, func, args, kwargs)
        if "sub" in key.function or kwargs.get("alpha", 1) != 1 or carriers[0].shape != carriers[1].shape:
            raise _unknown(key, " of tensors of two shapes, or with a factor")
        one, other = (each.detach() for each in carriers)
        sign = (one + other).sign()
        first, second = (one * sign).clamp_min(0), (other * sign).clamp_min(0)
        share_of_first = torch.where(first + second > 0, first / (first + second), 0.5)
        return _apply(
            lambda: func(*args, **kwargs),
            lambda relevance: (relevance * share_of_first, relevance * (1 - share_of_first)),
            tuple(carriers),
        )


def _proportional(
    relevance: Tensor, part: Tensor, function: Callable[[Tensor], Tensor], data: Tensor
) -> Tensor:
    """Share out what belongs to results that point the same way as this part of the data."""
    with torch.enable_grad():
        followed = part.detach().requires_grad_()
        sums = function(followed)
    whole = function(data)
    counts = (sums.detach() * whole > 0) & (sums.detach().abs() > _SMALLEST)
    each = torch.where(counts, relevance / sums.detach(), 0.0)
    (slope,) = torch.autograd.grad(sums, followed, each)
    return part * slope


def _z_plus(
    relevance: Tensor,
    data: Tensor,
    weight: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    signs: Tensor | None,
) -> Tensor:
    """Share out in proportion to the positive contributions (x w)+; (-x w)+ where a sign is negative."""
    found = torch.zeros_like(data)
    for sign in (1,) if signs is None else (1, -1):
        parts = [(x, w) for x, w in _of_sign(data, weight, sign)]
        with torch.enable_grad():
            followed = [x.detach().requires_grad_() for x, _ in parts]
            each = [product(x, w) for x, (_, w) in zip(followed, parts, strict=True)]
            sums = torch.stack(each).sum(0)
        counts = sums.detach().abs() > _SMALLEST
        if signs is not None:
            counts &= signs == sign
        ratio = torch.where(counts, relevance / sums.detach(), 0.0)
        slopes = torch.autograd.grad(sums, followed, ratio)
        for (x, _), slope in zip(parts, slopes, strict=True):
            found += x * slope
    return found


def _of_sign(data: Tensor, weight: Tensor, sign: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the parts of data and weight whose products have this sign."""
    positive, negative = weight.clamp_min(0), weight.clamp_max(0)
    yield data.clamp_min(0), positive if sign > 0 else negative
    if bool((data < 0).any()):
        yield data.clamp_max(0), negative if sign > 0 else positive


class _Shared(torch.autograd.Function):
    """A call whose backward pass shares out relevance."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[], Tensor],
        share: Share,
        saved: tuple[Tensor, ...],
        *carriers: Tensor,
    ) -> Tensor:
        ctx.share = share
        ctx.save_for_backward(*saved)
        result = run()
        if any(result is carrier for carrier in carriers):
            ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        return (None, None, None, *ctx.share(*relevance, *ctx.saved_tensors))


def _apply(
    run: Callable[[], Tensor], share: Share, carriers: tuple[Tensor, ...], saved: tuple[Tensor, ...] = ()
) -> Tensor:
    result: Tensor = _Shared.apply(run, share, saved, *carriers)
    return result


def _carries(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _where(key: CallKey) -> str:
    return f"`{key.function}` in `{key.module or 'the model'}`"


def _unknown(key: CallKey, what: str = "") -> ScoreError:
    return ScoreError(
        f"{_where(key)}{what}: no rule says how relevance passes through it. "
        "Use another method, such as `taylor-fo`."
    )
