"""Small networks of transformers: built from configurations, shaken so that no two values are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (`pip install 'prunecli[transformers]'`)"
)

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 8,
        "num_labels": 3,
    },
    "ViTForImageClassification": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
        "num_labels": 3,
    },
    "LlamaForCausalLM": {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 8,
        "tie_word_embeddings": True,
    },
}


def build(name: str, **changes: Any) -> nn.Module:
    """Return the model in eval mode, every parameter changed a little; it keeps no cache."""
    kind = getattr(transformers, name)
    model: nn.Module = kind(kind.config_class(**{**CONFIGURATIONS[name], "use_cache": False, **changes}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs(name: str, batch: int = 1) -> dict[str, Tensor]:
    """Return what the model is called with."""
    generator = torch.Generator().manual_seed(0)
    if name.startswith("ViT"):
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=generator)}
    ids = torch.randint(0, 20, (batch, 5), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def save(name: str, folder: Path, **options: Any) -> nn.Module:
    """Write the model with `save_pretrained`, and return it."""
    model = build(name)
    model.save_pretrained(folder, **options)  # type: ignore[operator]
    return model
