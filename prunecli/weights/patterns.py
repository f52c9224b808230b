"""`2:4` and its like: of every M weights in a row, the N with the highest scores stay."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from prunecli.errors import UsageError
from prunecli.weights.network import Masks, WeightScores

_COARSE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a sparse product may be from the dense one, relative to its largest value: both round."""

_SAMPLES = 64
"""Rows that the sparse product is tried on."""


@dataclass(frozen=True)
class Pattern:
    """So many of so many: of every `of` weights in a row along the inputs of a layer, `kept` stay.

    A linear layer is parted along its input features, a convolution along its input channels, by itself at
    each place of its kernel, as hardware wants it: there, a row is what one output adds up.
    """

    kept: int
    of: int
    input_dims: Mapping[str, int] = field(default_factory=dict)
    """Parameters whose inputs do not lie along the second dimension -> along which; see `within`."""

    @staticmethod
    def parse(text: str) -> Pattern:
        """Read `N:M`.

        Raises:
            UsageError: It is not written so, or nothing would go, or everything.

        >>> Pattern.parse("2:4").text
        '2:4'
        """
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
        if not found or not 1 <= int(found[1]) < int(found[2]):
            raise UsageError(f"`--pattern {text}`: write N:M with N below M; `2:4` keeps 2 of every 4.")
        return Pattern(int(found[1]), int(found[2]))

    @property
    def text(self) -> str:
        """The pattern as users write it."""
        return f"{self.kept}:{self.of}"

    def within(self, model: nn.Module) -> Pattern:
        """Return the pattern with what must be known of a model: its transposed convolutions."""
        turned = {
            f"{name}.weight".lstrip("."): 0
            for name, module in model.named_modules()
            if isinstance(module, _ConvTransposeNd)
        }
        return replace(self, input_dims=turned)

    def fits(self, name: str, shape: Sequence[int]) -> bool:
        """Return whether the inputs of a parameter can be parted; it stays dense otherwise."""
        dim = self._dim(name)
        return len(shape) > dim and shape[dim] % self.of == 0

    def left_dense(self, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Return the parameters that stay dense."""
        return tuple(name for name, shape in shapes.items() if not self.fits(name, shape))

    def notes(self, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Say which parameters stay dense, if any."""
        dense = self.left_dense(shapes)
        if not dense:
            return ()
        more = f" and {len(dense) - 4} more" if len(dense) > 4 else ""
        names = ", ".join(f"`{name}`" for name in dense[:4]) + more
        return (f"The pattern {self.text} leaves {names} dense: inputs are no multiple of {self.of}.",)

    def count(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Return how many weights stay in all.

        >>> Pattern.parse("2:4").count({"a": (3, 8), "b": (5, 3)})
        27
        """
        sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        return sum(
            size * self.kept // self.of if self.fits(name, shapes[name]) else size
            for name, size in sizes.items()
        )

    def masks(
        self, scores: WeightScores, before: Masks | None = None, count: int | None = None
    ) -> dict[str, Tensor]:
        """Return masks in which the highest of every few stay; of equals the last.

        Args:
            scores: One number per weight.
            before: What is masked already, which stays so and goes first.
            count: How many should stay for now, of a method that prunes in steps: more of every few stay
                until it is what the pattern leaves. None: that at once.
        """
        kept = self._kept_for_now(scores, count)
        masks = {name: self._mask(name, each, kept, before) for name, each in scores.items()}
        return {name: mask & before[name] for name, mask in masks.items()} if before is not None else masks

    def is_followed(self, name: str, mask: Tensor) -> bool:
        """Return whether at most so many of every few stay in a mask."""
        if not self.fits(name, mask.shape):
            return False
        return bool((self._rows(name, mask).sum(-1) <= self.kept).all())

    def _kept_for_now(self, scores: WeightScores, count: int | None) -> int:
        shapes = {name: tuple(each.shape) for name, each in scores.items()}
        total, least = sum(each.numel() for each in scores.values()), self.count(shapes)
        spare = max((count or 0) - least, 0)
        return self.kept + -(-spare * (self.of - self.kept) // max(total - least, 1))

    def _mask(self, name: str, scores: Tensor, kept: int, before: Masks | None) -> Tensor:
        if not self.fits(name, scores.shape):
            return torch.ones_like(scores, dtype=torch.bool)
        if before is not None:
            scores = scores.masked_fill(~before[name], -torch.inf)
        rows = self._rows(name, scores)
        order = rows.argsort(dim=-1, stable=True)
        chosen = torch.ones_like(rows, dtype=torch.bool).scatter(-1, order[..., : self.of - kept], False)
        moved = chosen.flatten(-2)  # [..., inputs]
        return moved.movedim(-1, self._dim(name)).contiguous()

    def _rows(self, name: str, tensor: Tensor) -> Tensor:
        """Return the weights with the inputs of each output parted: [..., inputs / of, of]."""
        rows: Tensor = tensor.movedim(self._dim(name), -1).unflatten(-1, (-1, self.of))
        return rows

    def _dim(self, name: str) -> int:
        return self.input_dims.get(name, 1)


def check_semi_structured(model: nn.Module, masks: Masks, device: str = "cuda") -> str:
    """Say whether torch's kernels for 2:4 take the weights of linear layers, and compute the same.

    Every such weight is converted in half precision (that of the model, where it has one) and multiplied.
    Convolutions are not tried: torch has such kernels for matrices alone.

    Args:
        model: The masked model; it is left alone.
        masks: Which of its weights stay.
        device: Where to try.
    """
    skipped = _cannot_try(device)
    if skipped is not None:
        return f"kernels not tried: {skipped}"
    weights = dict(_linear_weights(model, masks))
    if not weights:
        return "kernels not tried: no linear layer follows 2:4"
    refused = {name: reason for name, weight in weights.items() if (reason := _refusal(weight, device))}
    text = f"{len(weights) - len(refused)} of {len(weights)} linear layers accepted"
    if not refused:
        return text
    name, reason = next(iter(refused.items()))
    more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
    return f"{text}; `{name}` was not: {reason}{more}"


def _cannot_try(device: str) -> str | None:
    """Say why the kernels cannot be tried; None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and 8.0 is needed"
    return None


def _linear_weights(model: nn.Module, masks: Masks) -> Iterator[tuple[str, Tensor]]:
    """Yield the masked weights of linear layers in which 2 of every 4 stay."""
    pattern = Pattern(2, 4)
    for name, module in model.named_modules():
        parameter = f"{name}.weight".lstrip(".")
        if isinstance(module, nn.Linear) and parameter in masks:
            mask = masks[parameter]
            if pattern.is_followed(parameter, mask):
                yield parameter, module.weight.detach() * mask.to(module.weight.device)


def _refusal(weight: Tensor, device: str) -> str | None:
    """Say why torch does not take a weight, or how far its product is off; None if all is well."""
    dtype = weight.dtype if weight.dtype in _COARSE else torch.float16
    dense = weight.to(device, dtype).contiguous()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(_SAMPLES, dense.shape[1], generator=generator).to(device, dtype)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that its interface is a prototype
            sparse = torch.sparse.to_sparse_semi_structured(dense)
            found = F.linear(data, sparse).float()
    except (RuntimeError, NotImplementedError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    expected = F.linear(data, dense).float()
    error_ = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    return None if error_ <= _COARSE[dtype] else f"its product is off by {error_:.1e}"
