"""The stories, end to end on the sample models: what they return, what they write, what reads it again."""

from __future__ import annotations

import json
import runpy
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn

import prunecli
from prunecli.data import SyntheticDataWarning
from prunecli.errors import DataError, InputError, NotPrunableError, SpecError, UsageError
from prunecli.pipeline.comparing import compare_checkpoints
from prunecli.pipeline.compress_report import read_report
from prunecli.pipeline.export import Targets, export
from prunecli.pipeline.inspect import inspect
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.prune import prune
from prunecli.pipeline.running import explained
from prunecli.pipeline.score import score
from prunecli.pipeline.settings import Budget, Choices, Decision, Files, Importance, Machine, Samples, Source
from prunecli.plan import Plan

SAMPLES = Path(__file__).parents[2] / "sample_models"
MLP = SAMPLES / "digits_mlp" / "model.pt"
CNN = SAMPLES / "digits_cnn" / "model.pt"
RESNET = SAMPLES / "digits_resnet" / "model.safetensors"
CPU = Machine(device="cpu")


def choices(out: Path, **changes: object) -> Choices:
    """Return the choices of a quick run: half of the units, by magnitude, no ONNX."""
    quick = {
        "importance": Importance(method=("magnitude",)),
        "budget": Budget(keep="0.5"),
        "machine": CPU,
        "files": Files(out=str(out), onnx=False),
    }
    return Choices(**{**quick, **changes})  # type: ignore[arg-type]


def digits() -> torch.Tensor:
    """Return a batch of made-up images."""
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def load(sample: Path) -> nn.Module:
    """Return a dense sample model."""
    return prunecli.load_model(prunecli.read_spec(sample.with_name("model.toml")), sample)


@pytest.mark.parametrize("sample", (MLP, CNN, RESNET), ids=lambda path: path.parent.name)
def test_prune_writes_a_model_that_loads_bit_for_bit(sample: Path, tmp_path: Path) -> None:
    pruned = prune(str(sample), choices(tmp_path, importance=Importance()))
    loaded = prunecli.load(pruned.files[0], spec=sample.with_name("model.toml"))
    assert torch.equal(loaded(digits()), pruned.model(digits()))
    assert pruned.plan.kept_count == pruned.plan.unit_count // 2
    assert pruned.report.accuracy_before is not None
    assert pruned.report.accuracy_before.top1 > 0.97
    assert [check.name for check in pruned.report.parity] == ["structure", "numbers"]


def test_prune_writes_onnx_and_report(tmp_path: Path) -> None:
    pruned = prune(str(MLP), choices(tmp_path, files=Files(out=str(tmp_path / "small.safetensors"))))
    assert [path.name for path in pruned.files] == ["small.safetensors", "small.onnx", "small.json"]
    assert pruned.report.onnx is not None
    assert pruned.report.onnx.error < 1e-4
    assert read_report(str(pruned.files[2])) == pruned.report
    assert not [path for path in pruned.files if str(tmp_path)[1:].encode() in path.read_bytes()]
    assert not [path for path in pruned.files if str(SAMPLES)[1:].encode() in path.read_bytes()]


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    chosen = choices(tmp_path, importance=Importance(), samples=Samples(samples=100))
    first = [path.read_bytes() for path in prune(str(CNN), chosen).files]
    again = prune(str(CNN), choices(tmp_path, importance=Importance(), samples=Samples(samples=100),
                                    files=Files(out=str(tmp_path), onnx=False, force=True)))  # fmt: skip
    assert [path.read_bytes() for path in again.files] == first


def test_keep_everything_is_the_identity(tmp_path: Path) -> None:
    pruned = prune(str(RESNET), choices(tmp_path, budget=Budget(keep="1.0")))
    dense = load(RESNET)
    assert torch.equal(pruned.model(digits()), dense(digits()))


def test_a_plan_can_be_written_and_applied(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    first = prune(str(CNN), choices(tmp_path / "a", decision=Decision(plan=str(plan))))
    applied = choices(tmp_path / "b", budget=Budget(), decision=Decision(apply=str(plan)))
    second = prune(str(CNN), applied)
    assert Plan.from_json(plan.read_text()) == first.plan
    assert [file.name for file in first.report.files] == ["model.pruned.safetensors", "plan.json"]
    assert torch.equal(first.model(digits()), second.model(digits()))


def test_scores_can_be_written_and_used(tmp_path: Path) -> None:
    file = str(tmp_path / "scores.safetensors")
    score(str(CNN), machine=CPU, out=file)
    measured = prune(str(CNN), choices(tmp_path / "a", importance=Importance()))
    reused = prune(str(CNN), choices(tmp_path / "b", decision=Decision(scores=file)))
    assert reused.plan.keep == measured.plan.keep
    assert reused.report.settings == measured.report.settings


def test_report_and_plan_say_which_samples_were_used(tmp_path: Path) -> None:
    sampled = prune(str(MLP), choices(tmp_path / "a", importance=Importance(), samples=Samples(samples=64)))
    again = prune(
        str(MLP),
        choices(
            tmp_path / "b", importance=Importance(), samples=Samples(samples=64), machine=Machine(seed=1)
        ),
    )
    digest = sampled.report.settings["sample_digest"]
    assert sampled.report.settings["sample"] == "npz:../digits.npz#train[:1024]"
    assert sampled.plan.digests["npz:../digits.npz#train[:1024]"] == digest
    assert again.report.settings["sample_digest"] != digest


def test_scores_of_elsewhere_bring_their_own_sample(tmp_path: Path) -> None:
    file = str(tmp_path / "scores.safetensors")
    with pytest.warns(SyntheticDataWarning):
        score(str(MLP), samples=Samples(data="random:64"), machine=CPU, out=file)
    report = prune(str(MLP), choices(tmp_path, decision=Decision(scores=file))).report
    assert report.settings["sample"] == "random:64"
    assert "random-data" in {notice.kind for notice in report.warnings}


def test_several_methods_write_a_file_each(tmp_path: Path) -> None:
    methods = Importance(method=("magnitude", "random"))
    scored = score(str(MLP), importance=methods, machine=CPU, out=str(tmp_path / "s.safetensors"))
    assert [path.name for path in scored.files] == ["s.magnitude.safetensors", "s.random.safetensors"]


def test_a_pruned_file_can_be_inspected_and_pruned_again(tmp_path: Path) -> None:
    once = prune(str(RESNET), choices(tmp_path, budget=Budget(keep="0.5", scope="layer")))
    trusted = Source(spec=str(RESNET.with_name("model.toml")))
    assert inspect(str(once.files[0]), trusted).units == once.plan.kept_count
    twice = prune(str(once.files[0]), choices(tmp_path, source=trusted))
    assert twice.files[0].name == "model.pruned.pruned.safetensors"
    loaded = prunecli.load(twice.files[0], spec=RESNET.with_name("model.toml"))
    assert torch.equal(loaded(digits()), twice.model(digits()))


@pytest.mark.parametrize("suffix", (".pt", ".pth", ".onnx", ".json", ".bin", ".ckpt", ".PT"))
def test_out_cannot_be_another_kind_of_file(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a folder, or a file that ends in .safetensors"):
        prune(str(MLP), choices(tmp_path / f"x{suffix}"))


def test_a_spec_inside_a_file_runs_no_code_unless_trusted(tmp_path: Path) -> None:
    pruned = prune(str(MLP), choices(tmp_path))
    with pytest.raises(SpecError, match="--trust-spec"):
        inspect(str(pruned.files[0]))


def test_compare_uses_the_spec_of_the_dense_model(tmp_path: Path) -> None:
    pruned = prune(str(MLP), choices(tmp_path))
    report = compare_checkpoints([str(MLP), str(pruned.files[0])], machine=CPU)
    assert report.totals.params == pruned.report.totals.params
    assert report.accuracy_after == pruned.report.accuracy_after
    assert report.parity == pruned.report.parity


def test_export_writes_a_loader_that_needs_no_prunecli(tmp_path: Path) -> None:
    pruned = prune(str(MLP), choices(tmp_path))
    shutil.copy(MLP.with_name("model.py"), tmp_path)
    loader = tmp_path / "load_pruned.py"
    export(str(pruned.files[0]), Targets(loader=str(loader)), Source(trust_spec=True))
    assert "prunecli." not in loader.read_text().split('"""')[2]
    model = runpy.run_path(str(loader))["load"]()
    assert torch.equal(model(digits()), pruned.model(digits()))


def test_export_carries_a_dense_model_too(tmp_path: Path) -> None:
    shutil.copytree(MLP.parent, tmp_path / "mlp")
    file = tmp_path / "dense.safetensors"
    export(str(tmp_path / "mlp" / MLP.name), Targets(safetensors=str(file)))
    dense = load(MLP)
    assert torch.equal(prunecli.load(file, trust_spec=True)(digits()), dense(digits()))


def test_a_method_that_needs_data_says_so(tmp_path: Path) -> None:
    bare = "[model]\nfactory = 'model.py:digits_mlp'\n[input]\nshape = [1, 8, 8]\n"
    (tmp_path / "bare.toml").write_text(bare)
    shutil.copy(MLP.with_name("model.py"), tmp_path)
    chosen = choices(tmp_path, source=Source(spec=str(tmp_path / "bare.toml")), importance=Importance())
    with pytest.raises(DataError, match="`taylor-fo` looks at samples"):
        prune(str(MLP), chosen)


def test_a_plan_of_another_network_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    prune(str(MLP), choices(tmp_path / "a", decision=Decision(plan=str(plan))))
    with pytest.raises(InputError, match="another network"):
        prune(str(CNN), choices(tmp_path / "b", budget=Budget(), decision=Decision(apply=str(plan))))


def test_inspection_is_json() -> None:
    from prunecli.strict_json import to_plain

    found = inspect(str(RESNET))
    assert json.loads(json.dumps(to_plain(found)))["frozen"][0]["name"] == "classifier"
    assert found.prunable_params == found.params - 10  # all but the bias of the classifier


def test_a_network_without_groups_is_refused_whatever_the_budget(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    torch.save({"1.weight": torch.ones(3, 64), "1.bias": torch.ones(3)}, tmp_path / "net.pt")
    source = Source(spec=f"{tmp_path / 'net.py'}:net", input=("1x8x8",))
    for budget in (Budget(keep="0.5"), Budget(target="macs=0.5")):
        with pytest.raises(NotPrunableError, match="has no units that can be cut"):
            prune(str(tmp_path / "net.pt"), choices(tmp_path, source=source, budget=budget))


def test_the_lineage_of_an_onnx_file_is_named_alike_by_prune_and_export(tmp_path: Path) -> None:
    import onnx

    digest = sha256(MLP.read_bytes()).hexdigest()
    chosen = choices(tmp_path, files=Files(out=str(tmp_path)))
    prune(str(MLP), chosen)
    export(str(MLP), Targets(onnx=str(tmp_path / "dense.onnx")))
    for name in ("model.pruned.onnx", "dense.onnx"):
        found = {entry.key: entry.value for entry in onnx.load(tmp_path / name).metadata_props}
        assert found["prunecli.parent.model.pt"] == digest


class _Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_failing_forward_names_the_module() -> None:
    model = _Breaks()
    with (
        pytest.raises(
            DataError, match=r"Measuring: the model failed in `inner` \(Linear\) with RuntimeError"
        ),
        explained(model, "Measuring"),
    ):
        model(torch.ones(1, 3))


def test_out_of_memory_advises_a_smaller_batch() -> None:
    with pytest.raises(DataError, match="smaller `--batch-size`"), explained(nn.Identity(), "Measuring"):
        raise torch.OutOfMemoryError("CUDA out of memory")


class Stages(Silent):
    """Remembers the stages that it hears of, once each."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def progress(self, stage: str, done: int, total: int | None) -> None:
        self.heard += [stage] if stage not in self.heard else []


def test_every_stage_is_told_in_order(tmp_path: Path) -> None:
    stages = Stages()
    prune(str(MLP), choices(tmp_path, files=Files(out=str(tmp_path))), stages)
    assert stages.heard == [
        "reading", "finding groups", "scoring", "planning", "cutting", "proving", "accuracy before",
        "accuracy after", "exporting to ONNX", "packing", "reporting", "writing",
    ]  # fmt: skip
