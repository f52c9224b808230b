"""Tensors as a folder of Hugging Face names them -> as the model of this version of transformers does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunecli.spec import ModelSpec
from prunecli.spec.hugging_face import configuration, model_class, offline_and_quiet
from prunecli.spec.model_spec import FactoryKind, Reference


def as_named_by_transformers(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], spec: ModelSpec | None
) -> Mapping[str, Tensor]:
    """Return the tensors under the names of the model, tied ones under each of theirs.

    Versions of transformers rename layers, and files keep the names of old; `from_pretrained` knows them all.
    What the file lacks is left out here too, so that a check of names finds it.

    Args:
        tensors: as in the file.
        own: those of the model.
        spec: how the model was built; other models than those of transformers have the names they have.
    """
    reference = Reference.parse(spec.factory) if spec is not None else None
    if spec is None or reference is None or reference.kind is not FactoryKind.TRANSFORMERS:
        return tensors
    if tensors.keys() == own.keys():
        return tensors
    config = configuration(reference.name, spec.args)
    with torch.random.fork_rng(devices=[]), offline_and_quiet():
        model, found = model_class(reference.name).from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=_common_dtype(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the check that follows names them
        )
    named = {name: tensor for name, tensor in model.state_dict().items() if name not in found["missing_keys"]}
    extra = {name: tensors[name] for name in found["unexpected_keys"] if name in tensors}
    unlike = {name: torch.empty(shape, device="meta") for name, shape, *_ in found["mismatched_keys"]}
    return named | extra | unlike


def _common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the precision of the file; float32 if it has several."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else torch.float32
