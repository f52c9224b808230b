"""A network as large as one likes, of layers that are alike: a residual tower of perceptrons."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Adds what two layers make of the stream to it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream, with something added."""
        added: Tensor = self.down(self.up(self.norm(stream)).relu())
        return stream + added


def tower(blocks: int, width: int = 2048, hidden: int = 8192) -> nn.Module:
    """Return a tower of 2 * width * hidden weights a block."""
    body = (Block(width, hidden) for _ in range(blocks))
    return nn.Sequential(nn.Linear(64, width), *body, nn.Linear(width, 10))
