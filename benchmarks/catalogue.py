"""Write `prunecli/architectures/catalogue.tsv`: fingerprints of the architectures of torchvision and timm.

Run `python -m benchmarks.catalogue` with both installed. It builds each architecture two or three times, with
shapes and no values, which takes some ten minutes in all. The first line names the versions.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from prunecli.architectures.catalogue import PATH, VERSIONS
from prunecli.architectures.fingerprint import Argument, Fingerprint, Place, Shapes, take_fingerprint
from prunecli.errors import SpecError
from prunecli.model import build_model
from prunecli.spec import ModelSpec

STEPS = {"num_classes": 1009, "in_chans": 1}
"""How much larger arguments are made, to see where they show. The first is a prime."""
_SIDES = (32, 384, 448, 512, 518)
"""Sizes of pictures that torchvision's ViT is used with, beside its own."""


def main() -> None:
    """Write the catalogue."""
    plain = torchvision.__version__.partition("+")[0]
    lines = [f"{VERSIONS} torchvision {plain}, timm {timm.__version__}"]
    known: set[tuple[str, str, str]] = set()
    for factory, args in (*torchvision_calls(), *timm_calls()):
        try:
            found = measure(factory, args)
        except Exception as error:  # an architecture that needs more than a name, or a package
            sys.stderr.write(f"left out: {factory}: {str(error).splitlines()[0][:120]}\n")
            continue
        if (factory, found.names, found.shapes) not in known:  # else the argument changes nothing
            known.add((factory, found.names, found.shapes))
            lines.append(found.to_line())
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")


def torchvision_calls() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the factories of torchvision, with the arguments that change which tensors there are.

    Those made for quantisation are left out: they hold the tensors of their plain twins.
    """
    for name in torchvision.models.list_models():
        if name.startswith("quantized_"):
            continue
        yield f"torchvision:{name}", {}
        known = inspect.signature(torchvision.models.get_model_builder(name)).parameters
        if "aux_loss" in known:
            yield f"torchvision:{name}", {"aux_loss": True}
        if name in ("googlenet", "inception_v3"):
            yield f"torchvision:{name}", {"aux_logits": False}
        if name.startswith("vit_"):
            yield from (
                (f"torchvision:{name}", {"image_size": side}) for side in _SIDES if side % _patch(name) == 0
            )


def timm_calls() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the factories of timm; those without a classifier also with one."""
    for name in timm.list_models():
        yield f"timm:{name}", {}
        if not _default(f"timm:{name}", "num_classes"):
            yield f"timm:{name}", {"num_classes": 1000}


def measure(factory: str, args: Mapping[str, Any]) -> Fingerprint:
    """Build an architecture, again with other arguments, and return its fingerprint."""
    shapes = shapes_of(factory, args)
    return take_fingerprint(factory, shapes, _arguments(factory, args, shapes), args)


def shapes_of(factory: str, args: Mapping[str, Any]) -> Shapes:
    """Return the shapes of all tensors of a model, built without values."""
    spec = ModelSpec(factory, args=dict(args))
    try:
        with torch.device("meta"):
            model = build_model(spec)
    except SpecError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
        with _parameters_on_meta():  # code that asks a tensor of its own for values
            model = build_model(spec)
    state = model.state_dict().items()
    return {name: tuple(value.shape) for name, value in state if isinstance(value, torch.Tensor)}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let modules register parameters on the meta device, whatever they were made on."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param if param is None else nn.Parameter(param.to("meta")))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _arguments(factory: str, args: Mapping[str, Any], shapes: Shapes) -> Iterator[Argument]:
    """Yield the arguments that lengths depend on: with a second value, some lengths are others."""
    for name, step in STEPS.items():
        default = int(args.get(name, _default(factory, name)))
        try:
            other = shapes_of(factory, {**args, name: default + step}) if default else shapes
        except (SpecError, RuntimeError, TypeError, ValueError, AssertionError):
            continue
        if other.keys() != shapes.keys():
            continue
        places = tuple(_places(shapes, other, default, step))
        if places and all(place.offset >= 0 and place.factor > 0 for place in places):
            yield Argument(name, default, places)


def _places(shapes: Shapes, other: Shapes, value: int, step: int) -> Iterator[Place]:
    """Yield the lengths that differ where an argument of this value became larger by `step`."""
    for tensor in sorted(shapes):
        for axis, (before, after) in enumerate(zip(shapes[tensor], other[tensor], strict=True)):
            if before != after:
                factor = (after - before) // step
                yield Place(tensor, axis, factor, before - factor * value)


def _default(factory: str, argument: str) -> int:
    """Return the default of an argument; 0 where the factory does not take it."""
    library, _, name = factory.partition(":")
    if library == "timm":
        config = timm.get_pretrained_cfg(name)
        if argument == "num_classes":
            return config.num_classes if config else 1000
        return config.input_size[0] if config else 3
    if argument == "in_chans":
        return 0
    return _torchvision_classes(name)


def _torchvision_classes(name: str) -> int:
    module = torchvision.models.get_model_builder(name).__module__
    if ".detection" in module:
        return 2 if "keypoint" in name else 91
    if ".optical_flow" in module:
        return 0
    return 21 if ".segmentation" in module else 400 if ".video" in module else 1000


def _patch(name: str) -> int:
    return int(name.rpartition("_")[2])


if __name__ == "__main__":
    main()
