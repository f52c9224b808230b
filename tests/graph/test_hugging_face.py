"""Networks of transformers: what goes together in them, and that cuts are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunecli.graph.groups import find_groups
from prunecli.graph.structure import Structure
from prunecli.parity import verify
from prunecli.plan import Plan
from prunecli.surgery import apply_plan
from tests.graph.cutting import random_plan
from tests.hugging_face import CONFIGURATIONS, build, inputs

HEADS = {
    "BertForSequenceClassification": "bert.encoder.layer.{}.attention.self.query",
    "ViTForImageClassification": "vit.layers.{}.attention.q_proj",
    "LlamaForCausalLM": "model.layers.{}.self_attn.q_proj",
}
WIDTHS = {
    "BertForSequenceClassification": "bert.encoder.layer.{}.intermediate.dense",
    "ViTForImageClassification": "vit.layers.{}.mlp.fc1",
    "LlamaForCausalLM": "model.layers.{}.mlp.gate_proj",
}
RESIDUAL = {
    "BertForSequenceClassification": "bert.embeddings.word_embeddings",
    "ViTForImageClassification": "vit.embeddings.patch_embeddings.projection",
    "LlamaForCausalLM": "model.embed_tokens",
}


def plan_for(structure: Structure, keep: dict[str, tuple[int, ...]]) -> Plan:
    whole = {group.name: tuple(range(group.width)) for group in structure.groups}
    return Plan({**whole, **keep}, {group.name: group.width for group in structure.groups}, "by hand")


@pytest.mark.parametrize("attention", ("eager", "sdpa"))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_heads_mlp_widths_and_the_residual_width_are_cut(name: str, attention: str) -> None:
    model = build(name, attn_implementation=attention)
    structure = find_groups(model, (), inputs(name))
    widths = {group.name: group.width for group in structure.groups}
    for layer in (0, 1):
        assert widths.pop(HEADS[name].format(layer)) == 4
        assert widths.pop(WIDTHS[name].format(layer)) == 24
    assert widths.pop(RESIDUAL[name]) == 16
    assert set(widths) <= {"bert.pooler.dense"}
    plan = random_plan(structure)
    smaller = apply_plan(model, structure, plan)
    assert verify(model, smaller, structure, plan, (), inputs(name, 2)).holds


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_model_without_two_heads_is_the_one_whose_output_projection_ignores_them(name: str) -> None:
    model = build(name)
    structure = find_groups(model, (), inputs(name))
    smaller = apply_plan(model, structure, plan_for(structure, {HEADS[name].format(0): (0, 3)}))
    last = {"Bert": "attention.output.dense", "ViT": "attention.o_proj", "Llama": "self_attn.o_proj"}
    ending = next(value for key, value in last.items() if name.startswith(key))
    weight = next(
        parameter for path, parameter in model.named_parameters() if path.endswith(f".0.{ending}.weight")
    )
    with torch.no_grad():
        weight[:, 4:12] = 0  # four heads (or pairs that share keys) of four inputs: those in the middle
        wanted, found = model(**inputs(name, 2)).logits, smaller(**inputs(name, 2)).logits
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "sizes",
    (
        {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16},  # as many groups as heads
        {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 36},  # heads of six, six of them
        {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 16},  # each has its own keys
    ),
    ids=lambda sizes: "x".join(map(str, sizes.values())),
)
@pytest.mark.parametrize("attention", ("eager", "sdpa"))
def test_heads_that_share_keys_leave_together_whatever_the_sizes(sizes: Any, attention: str) -> None:
    model = build("LlamaForCausalLM", attn_implementation=attention, **sizes)
    structure = find_groups(model, (), inputs("LlamaForCausalLM"))
    for layer in (0, 1):
        group = structure.by_name[HEADS["LlamaForCausalLM"].format(layer)]
        assert group.width == sizes["num_key_value_heads"]
    plan = random_plan(structure)
    smaller = apply_plan(model, structure, plan)
    assert verify(model, smaller, structure, plan, (), inputs("LlamaForCausalLM", 2)).holds


@pytest.mark.parametrize(("attention", "heads"), (("sdpa", 8), ("eager", None)))
def test_heads_that_share_one_key_are_cut_where_attention_itself_repeats_it(
    attention: str, heads: int | None
) -> None:
    """Eager attention repeats keys a fixed number of times."""
    model = build("LlamaForCausalLM", attn_implementation=attention, num_key_value_heads=1)
    structure = find_groups(model, (), inputs("LlamaForCausalLM"))
    widths = {group.name: group.width for group in structure.groups}
    assert widths.get(HEADS["LlamaForCausalLM"].format(0)) == heads
    plan = random_plan(structure)
    smaller = apply_plan(model, structure, plan)
    assert verify(model, smaller, structure, plan, (), inputs("LlamaForCausalLM", 2)).holds


def test_a_cache_of_keys_is_an_output_which_stays_whole() -> None:
    model = build("LlamaForCausalLM", use_cache=True)
    structure = find_groups(model, (), inputs("LlamaForCausalLM"))
    frozen = {axis.name for axis in structure.frozen}
    assert {"model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.v_proj"} <= frozen
