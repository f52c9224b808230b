"""Folders of Hugging Face as specs: what they are built from, what they take in, and what is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from prunecli.errors import SpecError
from prunecli.model import build_model, build_on_meta, example_inputs
from prunecli.spec import InputSpec, ModelSpec, find_spec, from_json_dict, read_spec, to_json_dict
from prunecli.spec.hugging_face import build, configuration, offline_and_quiet
from tests.hugging_face import CONFIGURATIONS, save, transformers

BERT = CONFIGURATIONS["BertForSequenceClassification"]


def write(folder: Path, **table: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(table))
    return folder


def test_a_folder_becomes_a_class_and_its_configuration(tmp_path: Path) -> None:
    save("BertForSequenceClassification", tmp_path / "bert")
    spec = read_spec(f"hf:{tmp_path / 'bert'}", spec_args=["hidden_act=relu"])
    assert spec.factory == "transformers:BertForSequenceClassification"
    assert (spec.args["hidden_size"], spec.args["hidden_act"]) == (16, "relu")
    assert spec.inputs == (
        InputSpec((8,), "int64", "input_ids", 20),
        InputSpec((8,), "int64", "attention_mask"),
    )
    assert str(tmp_path) not in json.dumps(to_json_dict(spec))
    again = from_json_dict(to_json_dict(spec))  # which is not trusted: nothing but numbers is in it
    assert type(build_on_meta(again)).__name__ == "BertForSequenceClassification"


def test_another_class_can_be_built_from_the_same_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "bert", model_type="bert", architectures=["BertForMaskedLM"], **BERT)
    assert read_spec(f"hf:{folder}").factory == "transformers:BertForMaskedLM"
    assert read_spec(f"hf:{folder}#BertForSequenceClassification").factory.endswith("SequenceClassification")


def test_a_spec_file_names_a_folder_from_where_it_is(tmp_path: Path) -> None:
    save("ViTForImageClassification", tmp_path / "vit")
    (tmp_path / "net.toml").write_text('[model]\nfactory = "hf:vit"\n[task]\nmetric = "top5"\n')
    spec = read_spec(tmp_path / "net.toml")
    assert spec.inputs == (InputSpec((3, 8, 8), name="pixel_values"),)
    assert spec.task.metric.value == "top5"


def test_a_folder_needs_no_spec_beside_it_but_one_there_counts_more(tmp_path: Path) -> None:
    save("BertForSequenceClassification", tmp_path / "bert-v1.5")
    spec = find_spec(tmp_path / "bert-v1.5")
    assert spec.factory == "transformers:BertForSequenceClassification"
    assert find_spec(tmp_path / "bert-v1.5" / "model.safetensors").args == spec.args
    (tmp_path / "bert-v1.5.toml").write_text('[model]\nfactory = "hf:bert-v1.5"\n[input]\nshape = [5]\n')
    assert find_spec(tmp_path / "bert-v1.5").inputs == (InputSpec((5,)),)


def test_made_up_masks_hide_nothing() -> None:
    spec = ModelSpec("transformers:BertModel", BERT, (InputSpec((5,), "int64", "attention_mask"),))
    _, kwargs = example_inputs(spec, 2)
    assert kwargs["attention_mask"].tolist() == [[1] * 5] * 2


def test_models_of_two_texts_take_both() -> None:
    spec = read_spec("transformers:T5ForConditionalGeneration", spec_args=["vocab_size=30", "num_layers=1"])
    assert [item.name for item in spec.inputs] == ["input_ids", "decoder_input_ids", "attention_mask"]


def test_models_are_built_alike_from_the_same_seed() -> None:
    spec = ModelSpec("transformers:BertForSequenceClassification", BERT, (InputSpec((5,), "int64"),))
    left, right = (build_model(spec, seed=1).state_dict() for _ in range(2))
    assert all((left[name] == right[name]).all() for name in left)


def test_a_built_model_keeps_no_cache_and_the_configuration_stays_as_it_was() -> None:
    args = CONFIGURATIONS["LlamaForCausalLM"]
    assert build("LlamaForCausalLM", args).config.use_cache is False
    assert configuration("LlamaForCausalLM", args).use_cache is True


def test_what_names_code_is_left_out_wherever_it_stands() -> None:
    evil = {"_attn_implementation": "somebody/kernel", "_attn_implementation_internal": "somebody/kernel"}
    config = configuration("BertModel", {**BERT, **evil, "auto_map": {"AutoModel": "evil.Net"}})
    assert config._attn_implementation in (None, "eager", "sdpa")
    assert not hasattr(config, "auto_map")


def test_nothing_is_fetched_meanwhile_and_settings_are_given_back() -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE, transformers.logging.get_verbosity()
    with offline_and_quiet():
        assert constants.HF_HUB_OFFLINE
    assert (constants.HF_HUB_OFFLINE, transformers.logging.get_verbosity()) == before


@pytest.mark.parametrize(
    ("table", "message"),
    (
        ({"model_type": "bert"}, "does not name one class under `architectures`"),
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, "does not name one class"),
        ({"architectures": ["BertModel"], "quantization_config": {}}, "quantised model.*Prune it before"),
        ({"architectures": ["BertForEverything"]}, "has no model `BertForEverything`"),
        ({"architectures": ["AutoModel"]}, "has no model `AutoModel`"),
        ({"architectures": ["BertModel"], "model_type": "llama"}, "built from `bert`.*is of `llama`"),
        ({"architectures": ["BertModel"], "attn_implementation": "flash"}, None),
        ({"architectures": ["LlamaModel"], "hidden_size": 10, "num_attention_heads": 3}, "is refused by"),
    ),
)
def test_a_folder_that_cannot_be_built_is_refused(tmp_path: Path, table: Any, message: str | None) -> None:
    folder = write(tmp_path / "net", **table)
    if message is None:  # what names code is dropped from a file
        assert read_spec(f"hf:{folder}").inputs
        return
    with pytest.raises(SpecError, match=message):
        read_spec(f"hf:{folder}")


def test_an_implementation_of_attention_that_is_fetched_is_refused() -> None:
    with pytest.raises(SpecError, match="`somebody/kernel` is not one of eager, sdpa"):
        configuration("BertModel", {"attn_implementation": "somebody/kernel"})


def test_inputs_that_a_configuration_does_not_tell_are_asked_for() -> None:
    with pytest.raises(SpecError, match=r"does not say what the model takes in.*\[\[input\]\]"):
        read_spec("transformers:Wav2Vec2Model")


def test_inputs_that_are_asked_for_are_shown_as_the_model_names_them() -> None:
    with pytest.raises(SpecError, match="--input pixel_values=3x224x224`"):
        read_spec("transformers:ResNetForImageClassification")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    (
        ("BertForSequenceClasification", "did you mean `BertForSequenceClassification`"),
        ("BertModl", "did you mean `BertModel`"),
        ("PreTrainedModel", "(?!.*did you mean `PreTrainedModel`)"),
    ),
)
def test_a_class_that_is_not_there_is_looked_for(name: str, suggestion: str) -> None:
    with pytest.raises(SpecError, match=f"has no model `{name}`: {suggestion}"):
        read_spec(f"transformers:{name}")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs a folder with config.json"):
        read_spec(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SpecError, match="holds no table"):
        read_spec(f"hf:{tmp_path}")


@pytest.mark.parametrize("text", ("hf:", "hf:folder#", "hf:folder#a-b"))
def test_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="names no factory.*hf:FOLDER"):
        read_spec(text)


def test_a_file_may_not_name_a_folder_of_this_machine() -> None:
    table = {"model": {"factory": "hf:/somewhere"}, "input": {"shape": [3]}}
    with pytest.raises(SpecError, match="a folder of this machine"):
        build_model(from_json_dict(table))


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(SpecError, match=r"Install it with `pip install 'prunecli\[transformers\]'`"):
        read_spec("transformers:BertModel")
