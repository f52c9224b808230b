"""Pictures, `imagefolder:` and `torchvision:` -> how many samples there are, and how to fetch some."""

from __future__ import annotations

import importlib
import inspect
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import platformdirs
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from prunecli.data.samples import Fetch, collate
from prunecli.errors import DataError, SpecError
from prunecli.spec import ModelSpec
from prunecli.spec.discovery import parse_arguments
from prunecli.spec.tables import nearest
from prunecli.whole_file import read_whole

_RESIZE_OVER_CROP = 256 / 224
"""How much larger than the crop a picture is made, as torchvision's evaluation presets do."""
_MOST_STRETCH = 200
"""How many times longer than its shorter side a picture may be: the shorter one is resized."""


def open_imagefolder(place: str, spec: ModelSpec) -> tuple[int, Fetch]:
    """Open a folder with one subfolder of pictures per class; classes are numbered in alphabetical order."""
    folder = spec.resolve(place)
    if not folder.is_dir():
        raise DataError(f"`imagefolder:{place}`: there is no folder `{folder}`.")
    datasets = importlib.import_module("torchvision.datasets")
    try:
        dataset = datasets.ImageFolder(
            str(folder), transform=picture_transform(spec, always=True), loader=read_picture
        )
    except (FileNotFoundError, OSError) as error:
        raise DataError(
            f"`imagefolder:{place}`: {_first_line(error)}. Expected one subfolder of pictures per class."
        ) from None
    return len(dataset), lambda indices: collate([dataset[index] for index in indices])


def read_picture(path: str | Path) -> Image.Image:
    """Return a picture in colours, unless it is damaged, or would fill the memory.

    Raises:
        DataError: naming the file.
    """
    try:
        content = read_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                _check_stretch(path, picture.width, picture.height)
                converted: Image.Image = picture.convert("RGB")
        return converted
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"`{path}` has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels, which no sample has: a "
            "decompression bomb? Make it smaller, or take it out."
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"`{path}` is no picture, or a damaged one. Take it out.") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"`{path}` cannot be read: {reason}. Take it out.") from None
    except Exception as error:  # decoders raise anything about damaged files
        raise DataError(f"`{path}` is a damaged picture: {_first_line(error)}. Take it out.") from None


def _check_stretch(path: str | Path, width: int, height: int) -> None:
    """Refuse lines of pixels, which would fill the memory once their shorter side has its size."""
    if max(width, height) > _MOST_STRETCH * min(width, height):
        raise DataError(
            f"`{path}` has {width:,} x {height:,} pixels, and no sample is more than {_MOST_STRETCH} times "
            "as long as it is wide. Cut it, or take it out."
        )


def open_torchvision(place: str, spec: ModelSpec, download: bool) -> tuple[int, Fetch]:
    """Open a dataset of torchvision from the cache, as in `CIFAR10?split=test`."""
    name, _, query = place.partition("?")
    dataset_class = _dataset_class(name)
    root = platformdirs.user_cache_path("prunecli") / "datasets"
    arguments = _arguments(place, dataset_class, query)
    if "download" in inspect.signature(dataset_class).parameters:
        arguments["download"] = download
    try:
        dataset = dataset_class(root, transform=picture_transform(spec, always=False), **arguments)
    except (RuntimeError, OSError) as error:
        advice = "" if download else " Pass `--download` to fetch it."
        raise DataError(
            f"`torchvision:{place}` is not in the cache ({_first_line(error)}).{advice}"
        ) from error
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`torchvision:{place}` does not take these settings: {_first_line(error)}."
        ) from error
    return len(dataset), lambda indices: collate([dataset[index] for index in indices])


def picture_transform(spec: ModelSpec, *, always: bool) -> Callable[[Any], Tensor]:
    """Return how a PIL picture becomes a byte tensor of the spec's input shape.

    Args:
        spec: gives the shape, and perhaps `resize` and `crop`.
        always: resize and crop even a picture that has the right size already.
    """
    if len(spec.inputs) != 1 or len(spec.inputs[0].shape) != 3:
        raise DataError(
            f"Pictures need a spec with one input of shape [channels, height, width], not {_shapes(spec)}."
        )
    channels, height, width = spec.inputs[0].shape
    if channels not in (1, 3):
        raise DataError(f"Pictures have 1 or 3 channels, but the spec's input has {channels}.")
    crop = (spec.data.crop, spec.data.crop) if spec.data.crop else (height, width)
    shorter = spec.data.resize or round(min(crop) * _RESIZE_OVER_CROP)
    cut = v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(crop)])
    is_asked = always or spec.data.resize is not None or spec.data.crop is not None
    finish = v2.Compose(
        [v2.ToImage(), v2.Grayscale() if channels == 1 else v2.RGB(), v2.ToDtype(torch.uint8, scale=True)]
    )

    def transform(picture: Any) -> Tensor:
        if is_asked or getattr(picture, "size", None) != (width, height):
            picture = cut(picture)
        return finish(picture).as_subclass(Tensor)  # type: ignore[no-any-return]

    return transform


def _dataset_class(name: str) -> Callable[..., Any]:
    datasets = importlib.import_module("torchvision.datasets")
    found = getattr(datasets, name, None) if name in datasets.__all__ else None
    if inspect.isclass(found) and issubclass(found, datasets.VisionDataset):
        return found
    advice = nearest(name, datasets.__all__, "see torchvision.datasets.")
    raise DataError(f"torchvision has no dataset `{name}`: {advice}")


def _arguments(place: str, dataset_class: Callable[..., Any], query: str) -> dict[str, Any]:
    """Return the settings after `?`; `split=train|test` also serves datasets that have `train=True|False`."""
    try:
        arguments = parse_arguments(
            [f"{name}={value}" for name, value in parse_qsl(query, strict_parsing=bool(query))]
        )
    except (ValueError, SpecError):
        raise DataError(f"`torchvision:{place}`: write settings as in `CIFAR10?split=test`.") from None
    parameters = inspect.signature(dataset_class).parameters
    if "train" in parameters and "split" not in parameters and "split" in arguments:
        split = arguments.pop("split")
        if split not in ("train", "test"):
            raise DataError(f"`torchvision:{place}` has the splits train and test, not `{split}`.")
        arguments["train"] = split == "train"
    taken = {"root", "transform", "target_transform", "transforms", "download", "loader"} & arguments.keys()
    if taken:
        raise DataError(f"`torchvision:{place}`: `{taken.pop()}` cannot be set here.")
    return arguments


def _shapes(spec: ModelSpec) -> str:
    return ", ".join(str(list(item.shape)) for item in spec.inputs)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
