"""From a Hugging Face folder to a smaller one, without a spec: the stories."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import prunecli
from prunecli.pipeline.comparing import compare_checkpoints
from prunecli.pipeline.export import Targets, export
from prunecli.pipeline.inspect import inspect
from prunecli.pipeline.prune import prune
from prunecli.pipeline.settings import Budget, Choices, Decision, Files, Importance, Machine, Samples
from tests.hugging_face import inputs, save, transformers


def texts(path: Path) -> str:
    ids = np.random.default_rng(0).integers(0, 20, (24, 8))
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids), labels=ids[:, 0] % 3)
    return f"npz:{path}"


def test_a_folder_is_inspected_without_a_spec(tmp_path: Path) -> None:
    save("LlamaForCausalLM", tmp_path / "llama-3.2", max_shard_size="5KB")
    found = inspect(str(tmp_path / "llama-3.2"))
    assert (found.checkpoint, found.read_as) == ("llama-3.2", "Hugging Face folder")
    assert found.prunable_params == found.params
    assert found.inputs == ("8", "8")


def test_a_text_classifier_is_scored_cut_and_found_again_without_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "bert-v1.5"
    save("BertForSequenceClassification", folder)
    source = texts(tmp_path / "texts.npz")
    done = prune(
        str(folder),
        Choices(
            budget=Budget(keep="0.75", scope="layer"),
            samples=Samples(data=source, test_data=source),
            importance=Importance(method=("taylor-fo",)),
            machine=Machine(threads=1),
        ),
    )
    assert [path.name for path in done.files][:2] == ["bert-v1.5.pruned.safetensors", "bert-v1.5.pruned.onnx"]
    assert done.report.accuracy_after is not None
    folder.rename(tmp_path / "elsewhere")
    path = tmp_path / "bert-v1.5.pruned.safetensors"
    model = prunecli.load(path)
    batch = inputs("BertForSequenceClassification", 2)
    with torch.no_grad():
        wanted = done.model(**batch).logits
        assert model(**batch).logits.equal(wanted)
        export(str(path), Targets(hf=str(tmp_path / "small"), loader=str(tmp_path / "loader.py")))
        small = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "small")
        torch.testing.assert_close(small(**batch).logits, wanted)
        alone = runpy.run_path(str(tmp_path / "loader.py"))["load"]()
        assert alone(**batch).logits.equal(wanted)


def test_the_folder_that_was_written_can_be_cut_again(tmp_path: Path) -> None:
    save("ViTForImageClassification", tmp_path / "vit")
    choices = Choices(
        budget=Budget(keep="0.75", scope="layer"),
        importance=Importance(method=("magnitude",)),
        files=Files(onnx=False),
    )
    prune(str(tmp_path / "vit"), choices)
    export(str(tmp_path / "vit.pruned.safetensors"), Targets(hf=str(tmp_path / "small")))
    again = prune(str(tmp_path / "small"), choices)
    assert again.report.totals.params.after < again.report.totals.params.before
    compared = compare_checkpoints(
        [str(tmp_path / name) for name in ("vit", "vit.pruned.safetensors", "small")]
    )
    dense, cut, small = compared.models
    assert small.facts.params == cut.facts.params < dense.facts.params
    assert [model.name for model in compared.models] == ["vit", "vit.pruned.safetensors", "small"]


@pytest.mark.parametrize("method", ("fisher", "contribution", "taylor-so", "i-spasp"))
def test_methods_that_watch_the_forward_pass_see_networks_of_transformers(
    tmp_path: Path, method: str
) -> None:
    save("BertForSequenceClassification", tmp_path / "bert")
    done = prune(
        str(tmp_path / "bert"),
        Choices(
            budget=Budget(keep="0.75", ignore=("bert.embeddings*",)),
            decision=Decision(dry_run=True),
            samples=Samples(data=texts(tmp_path / "texts.npz")),
            importance=Importance(method=(method,)),
        ),
    )
    assert done.plan is not None
