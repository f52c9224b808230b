"""`crop,flip,randaugment` -> random changes to pictures, each by itself, and mixtures of batches."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunecli.data.samples import Inputs
from prunecli.errors import DataError, UsageError
from prunecli.spec.tables import nearest

_SMALL = 64
"""Up to this side, `autoaugment` follows the policy found on CIFAR-10, else the one found on ImageNet."""


@dataclass(frozen=True)
class _Kind:
    """A transform of torchvision by the name users know it by."""

    build: Callable[[Any, Any, tuple[int, int]], Any]
    """(torchvision.transforms.v2, amount, height and width) -> the transform."""
    amount: float | None = None
    """Where none is given."""
    allowed: tuple[float, float] | None = None
    """The smallest and the largest amount; None if the transform takes none."""
    is_whole: bool = False
    is_colour: bool = False
    """It computes with colours: 1 or 3 channels, from 0 to 255 in bytes or from 0 to 1."""


_KINDS = {
    "crop": _Kind(lambda v2, amount, sides: _crop(v2, amount, sides), None, (0, math.inf), is_whole=True),
    "flip": _Kind(lambda v2, _, sides: v2.RandomHorizontalFlip()),
    "vflip": _Kind(lambda v2, _, sides: v2.RandomVerticalFlip()),
    "rotate": _Kind(lambda v2, amount, sides: v2.RandomRotation(amount), 15, (0, 180)),
    "resizedcrop": _Kind(
        lambda v2, amount, sides: v2.RandomResizedCrop(sides, (amount, 1), antialias=True), 0.08, (0.01, 1)
    ),
    "randaugment": _Kind(
        lambda v2, amount, sides: v2.RandAugment(magnitude=amount), 9, (0, 30), is_whole=True, is_colour=True
    ),
    "trivialaugment": _Kind(lambda v2, _, sides: v2.TrivialAugmentWide(), is_colour=True),
    "autoaugment": _Kind(lambda v2, _, sides: v2.AutoAugment(_policy(v2, sides)), is_colour=True),
    "augmix": _Kind(
        lambda v2, amount, sides: v2.AugMix(severity=amount), 3, (1, 10), is_whole=True, is_colour=True
    ),
    "jitter": _Kind(
        lambda v2, amount, sides: v2.ColorJitter(amount, amount, amount, amount / 4),
        0.4,
        (0, 1),
        is_colour=True,
    ),
    "erase": _Kind(lambda v2, amount, sides: v2.RandomErasing(amount), 0.25, (0, 1)),
}
_MIXTURES = {
    "mixup": _Kind(lambda v2, amount, _: partial(v2.MixUp, alpha=amount), 0.2, (0.01, 100)),
    "cutmix": _Kind(lambda v2, amount, _: partial(v2.CutMix, alpha=amount), 1.0, (0.01, 100)),
}
NAMES = (*_KINDS, *_MIXTURES)


@dataclass(frozen=True)
class Step:
    """One part of an augmentation: `crop=2`."""

    name: str
    amount: float | None


@dataclass(frozen=True)
class Augmentation:
    """Random changes to pictures, drawn from torch's global generator.

    Called on a batch of raw pictures, before bytes become floats and before normalisation, it changes each by
    itself, in the order of `steps`. What enters a picture is 0. The pictures of a folder come after their
    resize and centre crop, so that `resizedcrop` cuts from what these left.
    """

    steps: tuple[Step, ...] = ()
    mixtures: tuple[Step, ...] = ()
    """Of which each batch gets one; see `mix`."""

    def __call__(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return a batch [B, C, H, W] of the same shape and dtype, each sample changed by itself.

        Args:
            images: the pictures.
            seeds: what each is changed by, whatever others stand beside it; None: as it comes.

        Raises:
            DataError: a step that computes with colours meets samples that are no pictures.
        """
        if not self.steps:
            return images
        self._check(images)
        transforms = _built(self.steps, _KINDS, (images.shape[2], images.shape[3]))
        changed = []
        for number, image in enumerate(images):
            if seeds is not None:
                torch.default_generator.manual_seed(seeds[number])  # leaves those of accelerators alone
            for transform in transforms:
                image = transform(image)
            changed.append(image)
        return torch.stack(changed)

    def mix(self, inputs: Inputs, targets: Any, classes: int) -> tuple[Inputs, Any]:
        """Mix a batch ready for the model by `mixup` or `cutmix`; without these it stays as it is.

        Args:
            inputs: the pictures [B, C, H, W], on any device.
            targets: the labels [B].
            classes: how many there are.

        Returns:
            The inputs, and a probability per class [B, classes] as targets, which cross-entropy takes.

        Raises:
            DataError: there are other inputs, or targets are no labels.
        """
        if not self.mixtures:
            return inputs, targets
        images = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        names = " and ".join(step.name for step in self.mixtures)
        if len(images) != 1 or images[0].ndim != 4:
            raise DataError(f"`--augment {names}` mixes batches of pictures, and nothing else.")
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
            raise DataError(f"`--augment {names}` needs one class number per sample as target.")
        mixtures = _built(self.mixtures, _MIXTURES, (images[0].shape[2], images[0].shape[3]))
        chosen = int(torch.randint(len(mixtures), ())) if len(mixtures) > 1 else 0
        mixed, shares = mixtures[chosen](num_classes=classes)(images[0], targets)
        return ({next(iter(inputs)): mixed} if isinstance(inputs, dict) else (mixed,)), shares

    def _check(self, images: Tensor) -> None:
        """Refuse samples whose colours mean nothing to a step that computes with colours."""
        colour = [step.name for step in self.steps if _KINDS[step.name].is_colour]
        if not colour:
            return
        if images.shape[1] not in (1, 3):
            raise DataError(
                f"`--augment {colour[0]}` needs pictures of 1 or 3 channels, not {images.shape[1]}."
            )
        is_float = images.is_floating_point()
        if not (images.dtype == torch.uint8 or (is_float and images.min() >= 0 and images.max() <= 1)):
            found = f"{images.dtype} from {images.min():.4g} to {images.max():.4g}"
            raise DataError(
                f"`--augment {colour[0]}` needs pictures in bytes or in floats from 0 to 1, not {found}. "
                "Store them so and let `normalize` in [data] do the rest, or leave it out."
            )


def parse_augmentation(text: str) -> Augmentation:
    """Read what `--augment` says: names, each perhaps with an amount, in the order they act.

    `crop=PIXELS` of padding (an eighth of the side), `flip`, `vflip`, `rotate=DEGREES` (15),
    `resizedcrop=SMALLEST SHARE` (0.08), `randaugment=MAGNITUDE` (9), `trivialaugment`, `autoaugment`,
    `augmix=SEVERITY` (3), `jitter=STRENGTH` (0.4), `erase=PROBABILITY` (0.25); and for whole batches
    `mixup=ALPHA` (0.2) and `cutmix=ALPHA` (1), of which each batch gets one.

    Raises:
        UsageError: a name is unknown, or an amount is.

    >>> parse_augmentation("crop=2,flip").steps
    (Step(name='crop', amount=2.0), Step(name='flip', amount=None))
    """
    steps = [_step(part.strip()) for part in text.split(",")] if text.strip() else []
    return Augmentation(
        tuple(step for step in steps if step.name in _KINDS),
        tuple(step for step in steps if step.name in _MIXTURES),
    )


def _step(text: str) -> Step:
    """Read one part."""
    name, equals, amount = text.partition("=")
    kind = (_KINDS | _MIXTURES).get(name)
    if kind is None:
        raise UsageError(f"`--augment {text}`: {nearest(name, NAMES)}")
    if not equals:
        return Step(name, kind.amount)
    if kind.allowed is None:
        raise UsageError(f"`--augment {text}`: `{name}` takes no amount.")
    low, high = kind.allowed
    value = _number(amount)
    if value is None or not low <= value <= high or (kind.is_whole and value != int(value)):
        word = "whole number" if kind.is_whole else "number"
        expected = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        raise UsageError(f"`--augment {text}`: expected a {word} {expected}.")
    return Step(name, value)


def _number(text: str) -> float | None:
    """Return a number that is finite, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _built(steps: tuple[Step, ...], kinds: dict[str, _Kind], sides: tuple[int, int]) -> list[Any]:
    """Return the transforms of torchvision, which is slow to import."""
    v2 = importlib.import_module("torchvision.transforms.v2")
    built = []
    for step in steps:
        kind = kinds[step.name]
        amount = int(step.amount) if kind.is_whole and step.amount is not None else step.amount
        built.append(kind.build(v2, amount, sides))
    return built


def _crop(v2: Any, padding: int | None, sides: tuple[int, int]) -> Any:
    return v2.RandomCrop(sides, padding=max(min(sides) // 8, 1) if padding is None else padding)


def _policy(v2: Any, sides: tuple[int, int]) -> Any:
    policies = importlib.import_module("torchvision.transforms").AutoAugmentPolicy
    return policies.CIFAR10 if max(sides) <= _SMALL else policies.IMAGENET
