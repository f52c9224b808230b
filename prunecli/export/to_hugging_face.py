"""Pruned model of transformers -> the files of a folder that `from_pretrained` reads, if a config can say it.

A configuration has one width for all layers: it fits where layers were cut alike, as `--scope layer` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor, nn

from prunecli.errors import ExportError, ProofError, UsageError
from prunecli.export.precision import Precisions, narrowed
from prunecli.graph.copying import copy_module, named_tensors
from prunecli.graph.outputs import tensors_in
from prunecli.model import example_inputs
from prunecli.spec import ModelSpec
from prunecli.spec.hugging_face import configuration, model_class, offline_and_quiet
from prunecli.spec.model_spec import FactoryKind, Reference

TOLERANCE: Final = 1e-4
WIDTHS: Final = (
    *("hidden_size", "d_model", "dim", "n_embd", "embedding_size", "projection_dim", "pooler_output_size"),
    *("intermediate_size", "d_ff", "hidden_dim", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("num_attention_heads", "num_heads", "n_heads", "n_head", "num_key_value_heads"),
    *("encoder_attention_heads", "decoder_attention_heads", "head_dim", "d_kv"),
)
"""Entries of configurations that are widths, or numbers of heads."""
_MOST_TRIES = 256
_MOST_VALUES = 3

Shapes = Mapping[str, tuple[int, ...]]


def to_hugging_face(model: nn.Module, spec: ModelSpec, came_in: Precisions | None = None) -> dict[str, bytes]:
    """Return the files of the folder: name -> content. They are read back, and must give the same outputs.

    Args:
        model: the pruned model, on the CPU.
        spec: how its dense model is built.
        came_in: the precision that tensors had in the checkpoint; the folder has it if all of them fit there.

    Raises:
        UsageError: it is no model of transformers.
        ExportError: no configuration has these widths.
        ProofError: the model that `from_pretrained` builds computes something else.
    """
    reference = Reference.parse(spec.factory)
    if reference.kind is not FactoryKind.TRANSFORMERS:
        raise UsageError(f"`--hf` is for models of transformers, and this one is `{spec.factory}`.")
    config = fitting_configuration(reference.name, spec.args, _shapes(model))
    kind = model_class(reference.name)
    with TemporaryDirectory() as folder, offline_and_quiet(), torch.random.fork_rng(devices=[]):
        fresh = kind(config)
        fresh.load_state_dict(model.state_dict())
        fresh.to(_dtype(model, narrowed(model, came_in or {}))).save_pretrained(folder)
        read = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        _prove(model, read, spec)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def fitting_configuration(name: str, args: Mapping[str, Any], wanted: Shapes) -> Any:
    """Return the configuration of the class `name` that builds tensors of the shapes wanted.

    Args:
        name: the class.
        args: the configuration of the dense model.
        wanted: the shapes of the pruned one.

    Raises:
        ExportError: there is none. The message names tensors that would need another one.
    """
    dense = _built_shapes(name, args)
    assert dense is not None, "the dense model was built from these"
    nearest: tuple[list[str], Shapes] | None = None
    for chosen in islice(_choices(configuration(name, args), dense, wanted), _MOST_TRIES):
        found = _built_shapes(name, {**args, **chosen})
        unlike = [tensor for tensor in wanted if found is not None and found.get(tensor) != wanted[tensor]]
        if found is not None and not unlike:
            return configuration(name, {**args, **chosen})
        if found is not None and (nearest is None or len(unlike) < len(nearest[0])):
            nearest = unlike, found
    unlike, found = nearest or (list(wanted), dense)
    texts = [
        f"`{tensor}` has {list(wanted[tensor])}, not {list(found.get(tensor, ()))}" for tensor in unlike[:3]
    ]
    more = f", and {len(unlike) - 3} more" if len(unlike) > 3 else ""
    raise ExportError(
        f"No config.json of `{name}` has these widths: at the nearest one, {', '.join(texts)}{more}. "
        "`--scope layer` cuts all layers alike, at a share that leaves whole heads; or use `prunecli.load`."
    )


def _choices(config: Any, dense: Shapes, wanted: Shapes) -> Iterator[dict[str, int]]:
    """Yield values for the widths of a configuration, those first that most tensors speak for."""
    cuts = Counter(
        (before, after)
        for name, shape in wanted.items()
        for before, after in zip(dense.get(name, ()), shape, strict=False)
    )
    known = config.to_dict()
    fields = {name: known[name] for name in WIDTHS if type(known.get(name)) is int and known[name] > 0}
    values = {}
    for name, width in fields.items():
        votes: Counter[int] = Counter()
        for (before, after), count in cuts.items():
            if before % width == 0 and (after * width) % before == 0 and after != before:
                votes[after * width // before] += count
        values[name] = [*(value for value, _ in votes.most_common(_MOST_VALUES)), width]
    for chosen in product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _built_shapes(name: str, args: Mapping[str, Any]) -> Shapes | None:
    """Return the shapes of a model that is built from this configuration; None where it cannot be."""
    try:
        config = configuration(name, args)
        with offline_and_quiet(), torch.device("meta"):
            return _shapes(model_class(name)(config))
    except Exception:  # each model refuses widths in its own way
        return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _dtype(model: nn.Module, narrow: Precisions) -> torch.dtype:
    """Return the one precision of all that is written, or single precision."""
    hidden = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    kinds = {
        narrow.get(name, tensor.dtype)
        for name, tensor in named_tensors(model).items()
        if tensor.is_floating_point() and name not in hidden
    }
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _prove(model: nn.Module, read: nn.Module, spec: ModelSpec) -> None:
    """Compare what both put out for two made-up samples, in float32."""
    plain = copy_module(model, lambda _, tensor: _float(tensor), _float).eval()
    args, kwargs = example_inputs(spec, batch=2)
    with torch.no_grad():
        wanted, found = plain(*args, **kwargs), read(*args, **kwargs)
    if isinstance(wanted, Mapping):
        found = [found.get(name) for name in wanted]
    pairs = list(zip(tensors_in(wanted), tensors_in(found), strict=True))
    error = max(
        float((b - a).abs().max() / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)) for a, b in pairs
    )
    if not error <= TOLERANCE:
        raise ProofError(
            f"What `from_pretrained` builds computes something else: relative error {error:.1e}, allowed "
            f"{TOLERANCE:.0e}. Nothing was written; use the file with `prunecli.load`."
        )


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone() if tensor.is_floating_point() else tensor.detach().clone()
