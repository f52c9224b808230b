"""ModelSpec -> nn.Module on the CPU or on the meta device, and made-up inputs of the right shape."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from prunecli.errors import SpecError
from prunecli.growth import Ceiling, growing_to
from prunecli.spec import InputSpec, ModelSpec, hugging_face
from prunecli.spec.code import TRUST_OR_NAME, Factory, call_factory, import_object
from prunecli.spec.model_spec import FactoryKind, Reference
from prunecli.spec.tables import nearest

_FETCHING_ARGUMENTS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path")
"""Arguments that make a factory read or download another file."""

_PADDING_MASKS = ("attention_mask", "decoder_attention_mask")
"""Inputs of transformers that say which tokens are there; without any, attention has nothing to look at."""

_SLOW_INITIALISATION = ("googlenet", "inception_v3")


def build_model(
    spec: ModelSpec, *, trust: bool = False, seed: int = 0, ceiling: Ceiling | None = None
) -> nn.Module:
    """Build the model on the CPU, in eval mode, with the same random parameters each time.

    Args:
        spec: names the factory and its arguments.
        trust: run the factory even if the spec came inside a checkpoint and names other code than models
            of torchvision, timm or transformers.
        seed: what the parameters are drawn from.
        ceiling: what it may grow to; to the size of no model at all if None.

    Raises:
        SpecError: the factory is not there, not trusted, failed, returned no module, or built too much.
    """
    spec = hugging_face.with_configuration(spec)
    factory, args = _factory(spec, trust)
    with torch.random.fork_rng(devices=[]), growing_to(ceiling or Ceiling(), spec.factory):
        torch.manual_seed(seed)
        model = call_factory(spec, spec.factory, factory, args)
    if not isinstance(model, nn.Module):
        raise SpecError(f"`{spec.factory}` returned {type(model).__name__}, not an nn.Module.")
    return model.eval()


def build_on_meta(spec: ModelSpec, *, trust: bool = False, ceiling: Ceiling | None = None) -> nn.Module:
    """Build the model on the meta device, with shapes and no values; by way of the CPU if it must be."""
    try:
        with torch.device("meta"):
            model = build_model(spec, trust=trust, ceiling=ceiling)
    except SpecError as error:
        if error.__cause__ is None:  # the spec is at fault, not the device
            raise
        return to_meta(build_model(spec, trust=trust, ceiling=ceiling))
    if all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return model
    return to_meta(build_model(spec, trust=trust, ceiling=ceiling))


@contextmanager
def bare() -> Iterator[None]:
    """Put the parameters of models that are built meanwhile on the meta device, and all else where it is.

    What is to be filled from a file needs no memory before; buffers may be in no file.
    """

    def on_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or nn.parameter.is_lazy(parameter):
            return None  # it stays what it is: a parameter that is there already is tied to another one
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]  # may return one
    try:
        yield
    finally:
        handle.remove()


def to_meta(model: nn.Module) -> nn.Module:
    """Move the model to the meta device in place. Tied tensors stay tied, unlike with `Module.to`."""
    moved: dict[int, Tensor] = {}

    def on_meta(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            empty = tensor.detach().to("meta")
            moved[id(tensor)] = (
                nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            )
        return moved[id(tensor)]

    originals = [*model.parameters(), *model.buffers()]  # alive until the end, so that ids stay unique
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = on_meta(tensor)  # type: ignore[assignment]
    del originals
    return model


def example_inputs(
    spec: ModelSpec,
    batch: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Make up one batch: normal floats, uniform integers.

    Args:
        spec: gives the shape and dtype of each input.
        batch: how many samples.
        device: where the tensors go; the numbers are the same everywhere.
        dtype: what float inputs become, instead of what the spec says.
        seed: what the numbers are drawn from.

    Returns:
        The positional and the keyword arguments of the model's forward.
    """
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for item in spec.inputs:
        tensor = draw_input(item, batch, generator)
        tensor = tensor.to(device=device, dtype=dtype if item.is_float else None)
        if item.name is None:
            args.append(tensor)
        else:
            kwargs[item.name] = tensor
    return tuple(args), kwargs


def draw_input(item: InputSpec, batch: int, generator: torch.Generator) -> Tensor:
    """Draw one input for `batch` samples. Masks of padding are all ones: each token is seen."""
    shape, dtype = (batch, *item.shape), getattr(torch, item.dtype)
    if item.name in _PADDING_MASKS and item.high is None:
        return torch.ones(shape, dtype=dtype)
    if item.is_float:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, item.high or 2, shape, generator=generator).to(dtype)


def _factory(spec: ModelSpec, trust: bool) -> tuple[Factory, Mapping[str, Any]]:
    """Look the factory up, and add the arguments that keep it from fetching parameters."""
    reference = Reference.parse(spec.factory)
    if not (trust or spec.may_run(spec.factory)):
        for name in _FETCHING_ARGUMENTS:
            if spec.args.get(name):
                raise SpecError(
                    f"The spec inside the checkpoint passes `{name}` to `{spec.factory}`, which fetches "
                    f"another file. {TRUST_OR_NAME}"
                )
    if reference.kind is FactoryKind.TORCHVISION:
        return _torchvision_factory(reference.name, spec)
    if reference.kind is FactoryKind.TIMM:
        return _timm_factory(reference.name, spec)
    if reference.kind is FactoryKind.TRANSFORMERS:
        return partial(_build_transformer, reference.name), spec.args
    return import_object(spec, spec.factory, trust=trust), spec.args


def _torchvision_factory(name: str, spec: ModelSpec) -> tuple[Factory, Mapping[str, Any]]:
    models = importlib.import_module("torchvision.models")
    known = models.list_models()
    if name not in known:
        advice = nearest(name, known, "`torchvision.models.list_models()` lists them.")
        raise SpecError(f"torchvision has no model `{name}`: {advice}")
    builder = models.get_model_builder(name)
    defaults: dict[str, Any] = {
        key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters
    }
    if name in _SLOW_INITIALISATION:
        defaults["init_weights"] = False
    return builder, {**defaults, **spec.args}


def _build_transformer(name: str, /, **args: object) -> nn.Module:
    model: nn.Module = hugging_face.build(name, args)
    return model


def _timm_factory(name: str, spec: ModelSpec) -> tuple[Factory, Mapping[str, Any]]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise SpecError(
            f"`{spec.factory}` needs timm. Install it with `pip install 'prunecli[timm]'`."
        ) from error
    known = timm.list_models()
    plain = name.partition(".")[0]
    if plain not in known:
        raise SpecError(
            f"timm has no model `{name}`: {nearest(plain, known, '`timm.list_models()` lists them.')}"
        )
    # timm's own defaults of a tagged name matter (activation, classes), so it is not taken apart
    return timm.create_model, {"model_name": name, **spec.args}
