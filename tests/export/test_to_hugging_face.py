"""Folders for `from_pretrained`: where a configuration can say the widths, and where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prunecli.errors import ExportError, ProofError, UsageError
from prunecli.export import to_hugging_face as module
from prunecli.export.to_hugging_face import to_hugging_face
from prunecli.graph.groups import find_groups
from prunecli.plan import Plan
from prunecli.spec import InputSpec, ModelSpec
from prunecli.spec.hugging_face import default_inputs
from prunecli.surgery import apply_plan
from tests.hugging_face import CONFIGURATIONS, build, inputs, transformers


def pruned(name: str, shares: tuple[float, ...] = (0.75,), **changes: Any) -> tuple[nn.Module, ModelSpec]:
    """Cut the groups to these shares, in turn."""
    model = build(name, **changes)
    structure = find_groups(model, (), inputs(name))
    keep = {
        group.name: tuple(range(round(group.width * shares[place % len(shares)])))
        for place, group in enumerate(structure.groups)
    }
    plan = Plan(keep, {group.name: group.width for group in structure.groups}, "by hand")
    args = {**CONFIGURATIONS[name], **changes}
    args["num_labels"] = args.get("num_labels", 2)
    spec = ModelSpec(f"transformers:{name}", args, default_inputs(name, args))
    return apply_plan(model, structure, plan), spec


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_layers_that_were_cut_alike_have_a_configuration(tmp_path: Path, name: str) -> None:
    smaller, spec = pruned(name)
    for file, content in to_hugging_face(smaller, spec).items():
        (tmp_path / file).write_bytes(content)
    read = getattr(transformers, name).from_pretrained(tmp_path).eval()
    assert (read.config.hidden_size, read.config.intermediate_size) == (12, 18)
    assert read.config.num_attention_heads == CONFIGURATIONS[name]["num_attention_heads"] * 3 // 4
    with torch.no_grad():
        torch.testing.assert_close(read(**inputs(name, 2)).logits, smaller(**inputs(name, 2)).logits)


def test_precision_stays(tmp_path: Path) -> None:
    smaller, spec = pruned("BertForSequenceClassification")
    for file, content in to_hugging_face(smaller.bfloat16(), spec).items():
        (tmp_path / file).write_bytes(content)
    read = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert read.classifier.weight.dtype == torch.bfloat16


def test_precision_of_the_checkpoint_stays_where_all_of_it_fits(tmp_path: Path) -> None:
    smaller, spec = pruned("BertForSequenceClassification")
    smaller.bfloat16().float()
    came_in = dict.fromkeys(smaller.state_dict(), torch.bfloat16)
    for file, content in to_hugging_face(smaller, spec, came_in).items():
        (tmp_path / file).write_bytes(content)
    assert '"bfloat16"' in (tmp_path / "config.json").read_text()
    assert load_file(tmp_path / "model.safetensors")["classifier.weight"].dtype == torch.bfloat16
    with torch.no_grad():
        smaller.classifier.weight.fill_(0.1)
    assert b'"float32"' in to_hugging_face(smaller, spec, came_in)["config.json"]


def test_a_cache_is_left_on_where_it_was() -> None:
    smaller, spec = pruned("LlamaForCausalLM")
    assert b'"use_cache": true' in to_hugging_face(smaller, spec)["config.json"]


def test_layers_of_different_widths_are_named() -> None:
    smaller, spec = pruned("BertForSequenceClassification", (1.0, 0.5, 0.75, 0.5, 0.25, 1.0))
    with pytest.raises(
        ExportError, match=r"query\.weight` has \[8, 16\], not .*`--scope layer`.*load`"
    ) as caught:
        to_hugging_face(smaller, spec)
    assert caught.value.exit_code == 5


def test_only_models_of_transformers_have_one() -> None:
    with pytest.raises(UsageError, match="`--hf` is for models of transformers.*`torchvision:resnet18`"):
        to_hugging_face(nn.Linear(2, 2), ModelSpec("torchvision:resnet18", inputs=(InputSpec((2,)),)))


def test_another_result_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    smaller, spec = pruned("ViTForImageClassification")
    with pytest.raises(
        ProofError, match="`from_pretrained` builds computes something else.*Nothing was written"
    ):
        to_hugging_face(smaller, spec)


def test_widths_that_a_model_chokes_on_are_not_those_of_a_configuration() -> None:
    assert module._built_shapes("BertModel", {"num_attention_heads": 0}) is None  # divides by it
