"""Small networks, one per thing that the tracer must follow, each with the widths it must find.

`groups` are the widths of the groups expected, sorted; `frozen` is text that must appear among the
reasons for what stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn

IMAGE = (3, 8, 8)


@dataclass(frozen=True)
class Case:
    """A network, an input of one sample, and what is known of it by hand."""

    name: str
    build: Callable[[], nn.Module]
    groups: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...] = (IMAGE,)
    frozen: str = ""
    tokens: bool = False

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Return random inputs."""
        if self.tokens:
            return tuple(torch.randint(0, 10, (batch, *shape)) for shape in self.inputs)
        return tuple(torch.randn(batch, *shape) for shape in self.inputs)


CASES: list[Case] = []


def case(*groups: int, **options: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a network under its class name with the widths of the groups it has."""

    def register(build: type[nn.Module]) -> type[nn.Module]:
        CASES.append(Case(build.__name__, build, tuple(sorted(groups)), **options))
        return build

    return register


def conv(ins: int, outs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, kernel, padding=kernel // 2, **options)


class Head(nn.Sequential):
    """Mean over the image, then a linear classifier."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


@case(12, 9, inputs=((6,),))
class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


@case(8, 12)
class PlainChain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 12), nn.SiLU(), Head(12))


@case(8, 12)
class ConvBn(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 12), nn.BatchNorm2d(12), Head(12)
        )


class Block(nn.Module):
    """A residual block, with a projection where the width changes."""

    def __init__(self, ins: int, inner: int, outs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(ins, inner, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, outs, bias=False), nn.BatchNorm2d(outs)
        self.project = (
            nn.Identity() if ins == outs else nn.Sequential(conv(ins, outs, 1), nn.BatchNorm2d(outs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.project(x))


@case(8, 6, 7, 12, 5, 9)
class Residual(nn.Sequential):
    def __init__(self) -> None:
        blocks = [Block(8, 6, 8), Block(8, 7, 8), Block(8, 9, 12), Block(12, 5, 12)]
        super().__init__(conv(3, 8), nn.BatchNorm2d(8), *blocks, Head(12))


@case(4, 6, 8)
class ThreeProducers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.a, self.b, self.c = conv(6, 8), conv(6, 8, 1), conv(4, 8)
        self.inner, self.head = conv(6, 4), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(self.a(x) + self.b(x) + self.c(self.inner(x))))


@case(6, 4, 4)
class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 6), conv(6, 4), conv(10, 4)
        self.norm, self.head = nn.BatchNorm2d(14), Head(14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.one(x).relu()], 1)
        x = torch.cat([x, self.two(x).relu()], 1)
        return self.head(self.norm(x))


@case(6, 4, 5, 7)
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.branches = nn.ModuleList([conv(6, 4, 1), conv(6, 5), conv(6, 7, 5)])
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([branch(x) for branch in self.branches], dim=1))


@case(8, 10)
class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 8),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            conv(8, 8, groups=8),
            nn.BatchNorm2d(8),
            conv(8, 10, 1),
            Head(10),
        )


@case(6, 2)
class DepthMultiplier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 6), conv(6, 12, groups=6), nn.ReLU(), Head(12))


@case(4, 2, 3)
class Grouped(nn.Sequential):
    """Whole groups (4), places within a group going in (2) and coming out (3)."""

    def __init__(self) -> None:
        super().__init__(
            conv(3, 8), nn.BatchNorm2d(8), conv(8, 12, groups=4), nn.BatchNorm2d(12), nn.ReLU(), Head(12)
        )


@case(8, 6, 5)
class Transposed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), conv(6, 5), Head(5))


@case(2, 3, 4)
class GroupedTransposed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 6), nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), nn.ReLU(), Head(8))


class ShuffleUnit(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv(half, inner, 1), nn.ReLU(), conv(inner, inner, groups=inner), conv(inner, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1)
        batch, width, height, breadth = x.shape
        return (
            x.view(batch, 2, width // 2, height, breadth)
            .transpose(1, 2)
            .reshape(batch, width, height, breadth)
        )


@case(8, 6)
class ShuffleNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 16), ShuffleUnit(16, 6), nn.ReLU(), Head(16))


@case(12, 3)
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up, self.head = conv(3, 12), nn.Linear(12, 3), nn.Linear(3, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.head(x * gate[:, :, None, None])


@case(6, 10)
class FlattenToLinear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 6), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 5)
        )


@case(4, 3, 4, 2)
class GroupNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 12),
            nn.GroupNorm(4, 12),
            nn.ReLU(),
            conv(12, 8),
            nn.GroupNorm(2, 8, affine=False),
            Head(8),
        )


@case(12, 7, inputs=((4, 6),))
class LayerNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(6, 12),
            nn.LayerNorm(12),
            nn.GELU(),
            nn.Linear(12, 7),
            nn.LayerNorm(7, elementwise_affine=False),
            nn.Linear(7, 2),
        )


@case(8, 6)
class Prelu(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), nn.PReLU(8), conv(8, 6), nn.PReLU(), Head(6))


@case(12, 9, inputs=((5,),), tokens=True)
class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 12), nn.Embedding(5, 12)
        self.up, self.down, self.out = nn.Linear(12, 9), nn.Linear(9, 12), nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.out(x + self.down(F.gelu(self.up(x))))


@case(12, inputs=((5,),), tokens=True)
class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.out = (
            nn.Embedding(10, 12),
            nn.Linear(12, 12),
            nn.Linear(12, 10, bias=False),
        )
        self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        return self.out(x + torch.tanh(self.mix(x)))


@case(8)
class ReusedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = conv(3, 8), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(self.shared(x))
        return self.head(x)


@case(7, 9, inputs=((6,),))
class RawParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(7, 6)), nn.Parameter(torch.randn(7))
        self.w2, self.w3 = nn.Parameter(torch.randn(7, 9)), nn.Parameter(torch.randn(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.w1, self.b1))
        return (x @ self.w2).sigmoid() @ self.w3


@case(8, 5, inputs=((4, 6),))
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(5, 8))
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.einsum("btc,kc->btk", torch.einsum("btd,dc->btc", x, self.a).relu(), self.b))


@case(6, 4)
class PixelShuffle(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 6), conv(6, 16), nn.PixelShuffle(2), nn.ReLU(), Head(4))


class Attention(nn.Module):
    """Multi-head attention written with views; the sizes are attributes."""

    def __init__(self, width: int = 12, heads: int = 3, fused: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = heads, width // heads, fused
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))


class Transformer(nn.Module):
    def __init__(self, attention: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.stem, self.position = nn.Linear(6, width), nn.Parameter(torch.randn(1, 5, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.out = nn.Linear(width, 4)

    def attend(self, x: Tensor) -> Tensor:
        return self.attention(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        x = x + self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.out(self.norm3(x).mean(1))


@case(12, 3, 4, 16, inputs=((5, 6),))
class ViewAttention(Transformer):
    def __init__(self) -> None:
        super().__init__(Attention())


@case(12, 3, 16, inputs=((5, 6),))
class FusedAttention(Transformer):
    """The default scale depends on the head size, so that only whole heads can go."""

    def __init__(self) -> None:
        super().__init__(Attention(fused=True))


@case(12, 3, 4, 16, inputs=((5, 6),))
class TorchAttention(Transformer):
    def __init__(self) -> None:
        super().__init__(nn.MultiheadAttention(12, 3, batch_first=True))

    def attend(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@case(12, 3, 4, 16, inputs=((5, 6),))
class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 12), nn.Linear(12, 4)
        self.layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.stem(x)))


@case(8, 6, 5, inputs=(IMAGE, (7,)))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = conv(3, 8), nn.Linear(7, 6)
        self.join, self.out = nn.Linear(14, 5), nn.Linear(5, 3)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        both = torch.cat([self.image(image).relu().mean((2, 3)), self.vector(vector)], 1)
        return self.out(F.relu(self.join(both)))


@case(8, 6)
class SeveralOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.one, self.two = conv(3, 8), conv(8, 6), Head(6), Head(8)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.stem(x).relu()
        return self.one(self.body(x)), [self.two(x)]


@case(6)
class DictOutput(nn.Module):
    """The features that are returned stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 6), conv(6, 8), Head(8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(x).relu())
        return {"features": features, "logits": self.head(features)}


@case(8, 7, 6)
class AuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), conv(8, 7), Head(7)
        self.auxiliary = nn.Sequential(conv(8, 6, 1), nn.ReLU(), Head(6))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        logits = self.head(self.body(x))
        return (logits, self.auxiliary(x)) if self.training else logits


@case(inputs=((5, 6),), frozen="fused kernels")
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm, self.out = nn.Linear(6, 9), nn.LSTM(9, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.stem(x))[0][:, -1])


@case(8, frozen="has no rule")
class UnknownOperation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), conv(8, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu())
        return self.head(torch.fft.fft(x, dim=1).real)


# --- the traps of PROVENANCE.md, section 6 ---


@case(9, 16, 3, inputs=((5, 6),))
class SwallowedHead(nn.Module):
    """Four heads are written into the code; `-1` takes up what a lost head leaves. Head sizes can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Linear(6, 9), nn.Linear(9, 36), nn.Linear(12, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.stem(x)).reshape(batch, length, 3, 4, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(self.proj(mixed.transpose(1, 2).reshape(batch, length, -1)))


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


@case(8, 6)
class WeightStandardisation(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), StandardisedConv(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), Head(6))


@case(4)
class ConflictingSplits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (
            conv(3, 24),
            nn.GroupNorm(3, 24),
            nn.GroupNorm(6, 24),
            Head(24),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.one(self.stem(x)))))


@case(6, 4, frozen="padding adds")
class Padding(nn.Module):
    """Zero channels on both sides, as in a ResNet with option A shortcuts; the image is padded too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.body, self.head = conv(3, 6), conv(6, 4), nn.Conv2d(4, 12, 3), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        wide = F.pad(x, (0, 0, 0, 0, 3, 3))
        return self.head(self.body(F.pad(self.inner(x), (1, 1, 1, 1))) + wide)


@case(6, frozen="written in place")
class SliceWrite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 6), conv(6, 8), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x).relu())
        wide = torch.zeros(y.shape[0], 16, *y.shape[2:], dtype=y.dtype, device=y.device)
        wide[:, 4:12] = y
        return self.head(wide)


@case(6)
class SliceAddition(nn.Module):
    """The literal 8 in the code fixes both widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow, self.head = conv(3, 6), conv(6, 16), conv(6, 8), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.wide(x)
        y[:, :8] += self.narrow(x)
        return self.head(y)


@case(8, inputs=((5, 6),))
class LazyBuffer(nn.Module):
    """A buffer that gets its size in the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("distances", torch.zeros(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.distances.shape[0] != x.shape[1]:
            places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
            self.distances = (places[:, None] - places[None, :]).abs()
        return self.out(torch.softmax(-self.distances.to(x.dtype), -1) @ self.stem(x))


@case(8, 6)
class AsksForValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 8), conv(8, 6), Head(6)
        self.register_buffer("temperature", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.body(x)) / self.temperature.item()


@case(6, inputs=((4, 9),), frozen="computed from its size")
class ScaleFromShape(nn.Module):
    """`sqrt` of a size is arithmetic that depends on the width: only the part before it may be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.out = (
            nn.Linear(9, 6),
            nn.Linear(6, 8),
            nn.Linear(6, 8),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k = self.q(x), self.k(x)
        return self.out((q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1]))


@case(8, 5)
class ChannelAttention(nn.Module):
    """Mean and maximum over channels: the units go, the statistic changes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.inner, self.head = conv(3, 8), conv(2, 5), conv(5, 1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.head(x * torch.sigmoid(self.inner(self.gate(pooled).relu())))


@case(6, 7)
class WeightNorm(nn.Sequential):
    def __init__(self) -> None:
        normed = nn.utils.parametrizations.weight_norm(conv(6, 7))
        super().__init__(conv(3, 6), nn.ReLU(), normed, nn.ReLU(), Head(7))


# --- what a hunt for mistakes brought up ---


def mlp(*middle: nn.Module, width: int = 12, into: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), *middle, nn.Linear(into or width, 5))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def simple(name: str, build: Callable[[], nn.Module], *groups: int, **options: Any) -> None:
    CASES.append(Case(name, build, tuple(sorted(groups)), **{"inputs": ((8,),), **options}))


def with_function(name: str, function: Callable[[Tensor], Tensor], *groups: int, **options: Any) -> None:
    simple(name, lambda: mlp(Apply(function)), *groups, **options)


def write_slice(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :4] = 0
    return x


def activate_tail(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, -5:].relu_()
    return x


def weigh_some(x: Tensor) -> Tensor:
    weights = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    weights[:5] = 0.5
    return x * weights


def repeat_by_width(x: Tensor) -> Tensor:
    for _ in range(x.shape[1] // 4):
        x = x * 1.1
    return x


FIXED = "fixed position"
with_function("HeadAndTail", lambda x: torch.cat([x[:, :5].relu(), x[:, 5:]], 1), frozen=FIXED)
with_function("NegativeSlice", lambda x: torch.cat([x[:, :-5], x[:, -5:].relu()], 1))
with_function("ZeroedSlice", write_slice, frozen=FIXED)
with_function("ActivatedTail", activate_tail, frozen=FIXED)
with_function("WeighedSlice", weigh_some, frozen="cannot be cut")
with_function("MeanOfSlice", lambda x: x + x[:, :5].mean(1, keepdim=True), frozen=FIXED)
with_function("Rolled", lambda x: torch.roll(x, 3, 1), frozen="rolled")
with_function("Flipped", lambda x: torch.flip(x, (1,)), 12)
with_function("SizeInATensor", lambda x: x / torch.sqrt(torch.tensor(float(x.shape[1]))), frozen="its size")
with_function("SizeInANewTensor", lambda x: x / x.new_tensor(x.shape[1]), frozen="its size")
with_function("CountOfOnes", lambda x: x / torch.ones_like(x).sum(1, keepdim=True), 12)
with_function("LoopOverWidth", repeat_by_width, frozen="another path")
with_function("BranchOnWidth", lambda x: x.relu() if x.shape[1] > 9 else x, frozen="another path")
with_function("SoftmaxOverUnits", lambda x: torch.softmax(x, 1), frozen="compared along")
with_function("SortedUnits", lambda x: torch.sort(x, 1).values, frozen="compared along")
with_function("IndexedUnits", lambda x: x[:, torch.arange(12)], frozen="index")
with_function("NormalisedUnits", lambda x: F.normalize(x, dim=1), 12)
with_function("Noise", lambda x: x + torch.randn_like(x), 12)
with_function("SumOfHalves", lambda x: x + torch.cat(x.chunk(2, 1)[::-1], 1), 6)
simple("RmsNorm", lambda: mlp(nn.RMSNorm(12)), 12)
simple("Glu", lambda: mlp(nn.GLU(), into=6), 6)
simple("Maxout", lambda: mlp(Apply(lambda x: x.view(len(x), -1, 3).max(-1).values), into=4), 4)
simple("EmbeddingBag", lambda: nn.Sequential(nn.EmbeddingBag(10, 12), nn.Linear(12, 5)), 12, tokens=True)
simple("Scripted", lambda: nn.Sequential(mlp(), nn.ReLU(), torch.jit.script(nn.Linear(5, 3))), 12)


@case(8)
class GramMatrix(nn.Module):
    """Every unit meets every other: a position of the flattened matrix has two owners of one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = conv(3, 8), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        return self.out((x @ x.transpose(1, 2)).flatten(1))


@case(2, 10, inputs=((5, 10),))
class GroupedQueries(nn.Module):
    """Four heads of queries share two heads of keys and values. One number is the size of all: it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared, self.size = 4, 2, 4
        self.stem = nn.Linear(10, 10)
        self.q, self.k, self.v = nn.Linear(10, 16), nn.Linear(10, 8), nn.Linear(10, 8)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k, v = (
            each(x).view(batch, length, self.shared, self.size).transpose(1, 2) for each in (self.k, self.v)
        )
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@case(12, inputs=((7, 8),))
class LongerThanTheExample(nn.Module):
    """A position table and a mask of which the example input uses only the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(8, 12), nn.Linear(12, 5)
        self.position = nn.Parameter(torch.randn(1, 40, 12))
        self.register_buffer("mask", torch.ones(30, 30).tril())
        self.register_buffer("unused", torch.ones(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        return self.out(self.mask[:length, :length] @ F.relu(self.stem(x) + self.position[:, :length]))


@dataclass
class Outcome:
    logits: Tensor


@case(12, inputs=((8,),))
class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Outcome:
        return Outcome(self.body(x))


@case(12, inputs=((8,),))
class ArgmaxOutput(DataclassOutput):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).argmax(1)


@case(10, 8)
class Blur(nn.Module):
    """One fixed filter for every channel, expanded to as many channels as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 10), conv(10, 8), Head(8)
        self.register_buffer("kernel", torch.ones(1, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return self.head(self.body(F.conv2d(x, kernel, groups=x.shape[1], padding=1).relu()))


@case(3, 12, 9, inputs=((5, 9),))
class CachedBias(nn.Module):
    """Attention biases that are looked up once, in eval mode, and kept in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 3, 4
        self.stem, self.qkv = nn.Linear(9, 9), nn.Linear(9, 36)
        self.biases = nn.Parameter(torch.randn(3, 25))
        self.proj, self.out = nn.Linear(12, 12), nn.Linear(12, 3)
        self.cache: dict[str, Tensor] = {}

    def bias(self, device: torch.device) -> Tensor:
        places = torch.arange(25, device=device).view(5, 5)
        if self.training:
            return self.biases[:, places]
        if str(device) not in self.cache:
            self.cache[str(device)] = self.biases[:, places]
        return self.cache[str(device)]

    def train(self, mode: bool = True) -> CachedBias:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.stem(x)).view(batch, length, self.heads, -1).split([4, 4, 4], dim=-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mixed = ((q @ k.transpose(-2, -1)) + self.bias(x.device)).softmax(-1) @ v
        return self.out(self.proj(mixed.transpose(1, 2).reshape(batch, length, -1)))


BY_NAME = {each.name: each for each in CASES}
