"""Folders that `save_pretrained` wrote: tensors in one file or in shards, under names old and new."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunecli.checkpoint import load_model, read_checkpoint
from prunecli.errors import CheckpointError
from prunecli.spec import find_spec
from tests.hugging_face import CONFIGURATIONS, inputs, save


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("shard", ("1GB", "5KB"))
def test_a_folder_gives_the_model_that_was_saved(tmp_path: Path, name: str, shard: str) -> None:
    saved = save(name, tmp_path / "net", max_shard_size=shard)
    assert (tmp_path / "net" / "model.safetensors").exists() is (shard == "1GB")
    checkpoint = read_checkpoint(tmp_path / "net")
    assert checkpoint.kind == "Hugging Face folder"
    model = load_model(find_spec(tmp_path / "net"), checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs(name)).logits, saved(**inputs(name)).logits)


def test_the_digest_follows_each_shard(tmp_path: Path) -> None:
    save("BertForSequenceClassification", tmp_path / "net", max_shard_size="5KB")
    before = read_checkpoint(tmp_path / "net")
    shard = sorted((tmp_path / "net").glob("*.safetensors"))[0]
    save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard)
    assert read_checkpoint(tmp_path / "net").digest != before.digest


def test_what_the_folder_lacks_is_named(tmp_path: Path) -> None:
    save("ViTForImageClassification", tmp_path / "net")
    path = tmp_path / "net" / "model.safetensors"
    tensors = load_file(path)
    del tensors["classifier.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="classifier.weight"):
        load_model(find_spec(tmp_path / "net"), tmp_path / "net")


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    save("ViTForImageClassification", tmp_path / "net")
    spec = find_spec(tmp_path / "net", spec_args=["hidden_size=20"])
    with pytest.raises(CheckpointError, match=r"vit\..*\[16.*\[20"):
        load_model(spec, tmp_path / "net")


def test_another_number_of_classes_is_one_of_labels(tmp_path: Path) -> None:
    save("ViTForImageClassification", tmp_path / "net")
    spec = find_spec(tmp_path / "net", spec_args=["num_labels=1", "tie_word_embeddings=true"])
    with pytest.raises(CheckpointError, match="pass `--spec-arg num_labels=3`"):
        load_model(spec, tmp_path / "net")


def test_a_folder_with_a_part_of_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no `model.safetensors`.*Save it with `model.save_pretrained"):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="only `pytorch_model.bin`. Pass that file, with `--spec hf:"):
        read_checkpoint(tmp_path)


def test_the_file_of_old_can_be_passed_with_the_folder_as_its_spec(tmp_path: Path) -> None:
    saved = save("BertForSequenceClassification", tmp_path / "net")
    torch.save(saved.state_dict(), tmp_path / "net" / "pytorch_model.bin")
    (tmp_path / "net" / "model.safetensors").unlink()
    path = tmp_path / "net" / "pytorch_model.bin"
    assert load_model(find_spec(path), path).classifier.weight.equal(saved.classifier.weight)  # type: ignore[operator, union-attr]
