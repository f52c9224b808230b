"""Pruned model -> one safetensors file, and back: no pickle, no tracing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prunecli.errors import CheckpointError, OutputError
from prunecli.export.files import write_file
from prunecli.export.precision import Precisions
from prunecli.export.rebuild import rebuild
from prunecli.export.record import METADATA_KEY, PrunedRecord
from prunecli.export.streamed import StreamedTensors
from prunecli.export.unfinished import finish_renames
from prunecli.graph.copying import aliases, named_tensors
from prunecli.on_demand import OnDemand
from prunecli.spec import ModelSpec, from_json_dict, read_spec

_NAMES: Final[Mapping[torch.dtype, Literal["float32", "float64"]]] = {
    torch.float32: "float32",
    torch.float64: "float64",
}


def save(model: nn.Module, path: str | Path, record: PrunedRecord, force: bool = False) -> None:
    """Write the model to one file from which `load` rebuilds it. Equal models give equal bytes.

    Raises:
        OutputError: when the file is there already (without `force`), or cannot be written.
    """
    write_file(Path(path), to_bytes(model, record), force)


def to_bytes(model: nn.Module, record: PrunedRecord, narrow: Precisions | None = None) -> bytes:
    """Return the content of the file that `save` writes.

    Args:
        model: What is written.
        record: What the file says of itself.
        narrow: Tensors that it holds in fewer bits than the model does, as `narrowed` finds them.
    """
    return safetensors.torch.save(*_content(model, record, narrow or {}, copy=True))


def to_stream(model: nn.Module, record: PrunedRecord, narrow: Precisions | None = None) -> StreamedTensors:
    """Return the same content, of a model that must not change: tensors are read when they are written."""
    return StreamedTensors(*_content(model, record, narrow or {}, copy=False))


def _content(
    model: nn.Module, record: PrunedRecord, narrow: Precisions, *, copy: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata."""
    _refuse_extra_state(model)
    tensors = named_tensors(model)
    hidden = _non_persistent(model) & tensors.keys()
    record = replace(
        record,
        aliases=aliases(model),
        non_persistent=tuple(sorted(hidden)),
        widened={name: _NAMES[tensors[name].dtype] for name in narrow},
    )
    plain = {name: _plain(name, tensor, narrow.get(name), copy) for name, tensor in tensors.items()}
    return plain, {METADATA_KEY: record.to_json()}


def load(path: str | Path, spec: ModelSpec | str | Path | None = None, trust_spec: bool = False) -> nn.Module:
    """Rebuild a pruned model from its file, in eval mode, on the CPU.

    Args:
        path: A file written by `save`.
        spec: How to build the dense model; the spec inside the file if None.
        trust_spec: Let the spec inside the file run any code, not only factories of torchvision, timm
            and transformers. A spec given here is always trusted.

    Raises:
        CheckpointError: when the file is no pruned model, or does not fit the spec.
        SpecError: when there is no spec, or the one inside may not be run.
    """
    path = Path(path)
    finish_renames(path.parent)
    record, tensors = _read(path)
    return rebuild_pruned(path, record, tensors, _choose_spec(path, record, spec, trust_spec))


def rebuild_pruned(
    path: Path, record: PrunedRecord, tensors: Mapping[str, Tensor], spec: ModelSpec
) -> nn.Module:
    """Return the model that the record and the tensors of the file at `path` describe."""
    from prunecli.graph import twins
    from prunecli.growth import Ceiling
    from prunecli.model import build_model, build_on_meta

    ceiling = Ceiling.over(tensors)
    try:
        return rebuild(
            lambda device: (build_on_meta if device == "meta" else build_model)(spec, ceiling=ceiling),
            twins.install,
            tensors,
            {
                name: getattr(record, name)
                for name in ("attributes", "rewritten", "aliases", "non_persistent", "widened")
            },
        )
    except ValueError as error:
        raise CheckpointError(f"`{path}`: {error}. Check that `{spec.factory}` is what was pruned.") from None


def _read(path: Path) -> tuple[PrunedRecord, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"`{path}`: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise CheckpointError(
                    f"`{path}` was not written by prunecli: it has no `{METADATA_KEY}` metadata. "
                    "Load it as a checkpoint, with a spec."
                )
            record = PrunedRecord.from_json(text, str(path))
            # cloned, since kernels may round differently where memory is not aligned as in the model saved
            return record, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"`{path}` cannot be read as safetensors: {error}.") from None


def _choose_spec(
    path: Path, record: PrunedRecord, spec: ModelSpec | str | Path | None, trust_spec: bool
) -> ModelSpec:
    if isinstance(spec, ModelSpec):
        return spec
    if spec is not None:
        return read_spec(spec)
    if record.spec is None:
        raise CheckpointError(f"`{path}` holds no spec. Say how to build the dense model with `spec`.")
    return from_json_dict(record.spec, base=path.parent, trusted=trust_spec)


def _non_persistent(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules(remove_duplicate=False)
        for key in module._non_persistent_buffers_set
    }


def _plain(name: str, tensor: Tensor, dtype: torch.dtype | None, copy: bool) -> Tensor:
    """Return the tensor in that dtype, on the CPU; a copy that owns just its own memory, if asked for."""
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        kind = (
            "no values (meta device)" if tensor.is_meta else f"layout {tensor.layout}, dtype {tensor.dtype}"
        )
        raise OutputError(f"`{name}` has {kind}, which a safetensors file cannot hold.")
    if isinstance(tensor, OnDemand):
        return tensor.detach().to(dtype or tensor.dtype)
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.to("cpu", dtype, copy=copy, memory_format=torch.contiguous_format)


def _refuse_extra_state(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise OutputError(
                f"Module `{name}` ({type(module).__name__}) keeps state that is no tensor "
                "(`get_extra_state`), which a safetensors file cannot hold."
            )
