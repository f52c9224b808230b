"""A variational autoencoder, and its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

Output = tuple[Tensor, Tensor, Tensor]
"""Logits of the pixels, and mean and log variance of the code."""


class VAE(nn.Module):
    """Two convolutions that halve the picture, two linear layers, a code; then the same mirrored.

    The linear layers have no biases.
    """

    def __init__(
        self, channels: int, size: int, convs: tuple[int, int], hidden: tuple[int, int], latent: int
    ) -> None:
        super().__init__()
        (first, second), (third, fourth), side = convs, hidden, size // 4
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, first, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * side * side, third, bias=False),
            nn.ReLU(),
            nn.Linear(third, fourth, bias=False),
            nn.ReLU(),
        )
        self.mean = nn.Linear(fourth, latent, bias=False)
        self.log_variance = nn.Linear(fourth, latent, bias=False)
        self.decoder = nn.Sequential(
            nn.Linear(latent, fourth, bias=False),
            nn.ReLU(),
            nn.Linear(fourth, third, bias=False),
            nn.ReLU(),
            nn.Linear(third, second * side * side, bias=False),
            nn.ReLU(),
            nn.Unflatten(1, (second, side, side)),
            nn.ConvTranspose2d(second, first, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(first, channels, 4, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> Output:
        """Return the logits of the pixels, and what the code was drawn from; in eval mode it is the mean."""
        features = self.encoder(images)
        mean, log_variance = self.mean(features), self.log_variance(features)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(code), mean, log_variance


def vae(
    channels: int = 3,
    size: int = 64,
    convs: tuple[int, int] = (32, 64),
    hidden: tuple[int, int] = (2048, 4096),
    latent: int = 100,
) -> nn.Module:
    """Build the network for pictures of `size` x `size`, a multiple of 4."""
    return VAE(channels, size, convs, hidden, latent)


def loss(output: Output, images: Tensor) -> Tensor:
    """Return the cross-entropy of all pixels plus the divergence of the code from N(0, 1), per sample."""
    logits, mean, log_variance = output
    pixels = binary_cross_entropy_with_logits(logits, images, reduction="sum")
    divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum() / 2
    return (pixels + divergence) / len(images)
