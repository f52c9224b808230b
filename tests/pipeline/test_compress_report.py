"""Files side by side: checkpoints, pruned ones, ONNX; what the reports beside them add; latency."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from prunecli.errors import CheckpointError, ExportError, InputError, UsageError
from prunecli.pipeline import sides
from prunecli.pipeline.comparing import compare_checkpoints
from prunecli.pipeline.compress_report import read_report, with_sweep
from prunecli.pipeline.prune import prune
from prunecli.pipeline.report_settings import Latency
from prunecli.pipeline.settings import Budget, Choices, Files, Importance, Machine, Samples, Source
from prunecli.report.sweep import SweepReport, SweepRow

MLP = Path(__file__).parents[2] / "sample_models" / "digits_mlp" / "model.pt"
CPU = Machine(device="cpu", threads=1)
SPEC = Source(spec=str(MLP.with_name("model.toml")))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with what `prune` wrote of the perceptron, ONNX too."""
    folder = tmp_path_factory.mktemp("pruned")
    chosen = Choices(
        importance=Importance(method=("taylor-fo",)),
        budget=Budget(keep="0.5"),
        machine=CPU,
        samples=Samples(samples=128),
        files=Files(out=str(folder)),
    )
    prune(str(MLP), chosen)
    return folder


def test_three_files_of_two_kinds_stand_side_by_side(pruned: Path) -> None:
    small, exported = pruned / "model.pruned.safetensors", pruned / "model.pruned.onnx"
    report = compare_checkpoints([str(MLP), str(small), str(exported)], machine=CPU)
    dense, middle, last = report.models
    assert [model.read_as for model in report.models] == ["torch zip", "pruned file", "ONNX"]
    assert [model.file_bytes for model in report.models] == [
        path.stat().st_size for path in (MLP, small, exported)
    ]
    assert report.totals.file_bytes is not None
    assert report.totals.file_bytes.ratio == exported.stat().st_size / MLP.stat().st_size
    assert middle.facts.macs == last.facts.macs < dense.facts.macs
    assert middle.accuracy is not None
    assert last.accuracy is not None
    assert last.accuracy.top1 == middle.accuracy.top1
    assert (middle.method["method"], last.method) == ("taylor-fo", {"method": "taylor-fo"})
    assert dense.parents == {}
    assert set(middle.parents.values()) == set(last.parents.values()) == {dense.sha256}
    assert report.title == "model.pt -> model.pruned.safetensors -> model.pruned.onnx"


def test_a_report_beside_a_file_lends_its_scores(pruned: Path, tmp_path: Path) -> None:
    own = read_report(str(pruned / "model.pruned.json"))
    small = str(shutil.copy(pruned / "model.pruned.safetensors", tmp_path))
    assert compare_checkpoints([str(MLP), small], machine=CPU).scores is None
    beside = Path(shutil.copy(pruned / "model.pruned.json", tmp_path))
    assert compare_checkpoints([str(MLP), small], machine=CPU).scores == own.scores
    other = replace(own, files=tuple(replace(file, sha256="0" * 64) for file in own.files))
    beside.write_text(other.to_json(), encoding="utf-8")
    assert compare_checkpoints([str(MLP), small], machine=CPU).scores is None
    beside.write_text("{]", encoding="utf-8")  # whatever else may have that name
    assert compare_checkpoints([str(MLP), small], machine=CPU).scores is None


def test_scores_are_of_the_line_of_the_last_file(pruned: Path) -> None:
    small, exported = str(pruned / "model.pruned.safetensors"), str(pruned / "model.pruned.onnx")
    assert compare_checkpoints([str(MLP), small, str(MLP)], machine=CPU).scores is None
    assert compare_checkpoints([str(MLP), small, exported], machine=CPU).scores is not None


def test_what_prune_writes_tells_how_the_scores_are_spread(pruned: Path) -> None:
    report = read_report(str(pruned / "model.pruned.json"))
    assert report.scores is not None
    assert report.scores.method == "taylor-fo"
    assert report.totals.units is not None
    assert sum(group.kept for group in report.scores.groups) == report.totals.units.after
    kept = [group.kept_ranks.low for group in report.scores.groups if group.kept_ranks is not None]
    assert min(kept) > report.scores.units / 2 - 1  # scope global keeps the upper half, but one per group


def test_latency_is_measured_in_both_runtimes(pruned: Path) -> None:
    paths = [MLP, pruned / "model.pruned.safetensors", pruned / "model.pruned.onnx"]
    report = compare_checkpoints([*map(str, paths)], machine=CPU, timed=Latency(True, 3, 2))
    dense, middle, last = report.models
    assert report.latency is not None
    assert (report.latency.runs, report.latency.batch_size, report.latency.threads) == (3, 2, 1)
    assert last.pytorch is None
    for timing in (dense.pytorch, middle.pytorch, dense.onnxruntime, middle.onnxruntime, last.onnxruntime):
        assert timing is not None
        assert 0 < timing.low <= timing.median <= timing.high
    assert dense.pytorch is not None
    assert dense.pytorch.ratio == 1


def test_a_model_that_does_not_export_is_timed_in_pytorch_alone(
    pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ExportError(
            "PyTorch cannot export this model to ONNX: no. Leave the file out with `--no-onnx`."
        )

    monkeypatch.setattr(sides, "to_onnx", refuse)
    small = str(pruned / "model.pruned.safetensors")
    report = compare_checkpoints([str(MLP), small], machine=CPU, timed=Latency(True, 1))
    assert report.models[1].pytorch is not None
    assert report.models[1].onnxruntime is None
    texts = [notice.text for notice in report.warnings if notice.kind == "latency"]
    assert texts[0] == ("model.pt: no latency in onnxruntime. PyTorch cannot export this model to ONNX: no.")


def test_an_onnx_file_that_does_not_run_is_compared_all_the_same(pruned: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    whole = pruned / "model.pruned.onnx"
    proto = onnx.load(whole)
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="elsewhere.data")
    apart = tmp_path / "apart.onnx"
    apart.write_bytes(proto.SerializeToString())
    report = compare_checkpoints([str(apart), str(whole)], machine=CPU, timed=Latency(True, 1))
    (text,) = [notice.text for notice in report.warnings if notice.kind == "latency"]
    assert text.startswith(
        "apart.onnx: no latency in onnxruntime. The ONNX file keeps tensors in other files"
    )
    assert report.totals.macs.ratio == 1
    assert report.models[1].onnxruntime is not None
    assert report.time_left("onnxruntime") is None


def test_onnx_files_alone_need_no_spec(pruned: Path) -> None:
    exported = str(pruned / "model.pruned.onnx")
    report = compare_checkpoints([exported, exported], machine=CPU, timed=Latency(True, 2))
    assert report.totals.params.ratio == 1
    assert report.accuracy_after is None
    assert report.models[1].onnxruntime is not None


def test_onnx_files_alone_are_judged_with_a_spec(pruned: Path) -> None:
    exported = str(pruned / "model.pruned.onnx")
    report = compare_checkpoints([exported, exported], SPEC, machine=CPU)
    told = read_report(str(pruned / "model.pruned.json")).accuracy_after
    assert told is not None
    assert report.accuracy_after is not None
    assert report.accuracy_after.top1 == told.top1


def test_a_file_that_was_made_from_another_is_told(pruned: Path) -> None:
    small = str(pruned / "model.pruned.safetensors")
    assert "lineage" not in {notice.kind for notice in compare_checkpoints([str(MLP), small]).warnings}
    (first, *_) = compare_checkpoints([small, str(pruned / "model.pruned.onnx"), str(MLP)], SPEC).warnings
    assert first.text == (
        "model.pruned.onnx was not made from this model.pruned.safetensors: "
        "it names model.pt with another digest."
    )


def test_one_file_is_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match="Name two files or more"):
        compare_checkpoints([str(MLP)], machine=CPU)


def test_a_damaged_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07garbage")
    with pytest.raises(CheckpointError, match=r"net\.onnx` is no valid ONNX file"):
        compare_checkpoints([str(MLP), str(tmp_path / "net.onnx")], machine=CPU)


def test_a_sweep_adds_its_trade_off(pruned: Path, tmp_path: Path) -> None:
    rows = tuple(SweepRow("snip", "global", f"ratio={r}", float(r), 0, error="none") for r in (2, 4))
    (tmp_path / "net.sweep.json").write_text(SweepReport("net", "weight", rows).to_json(), encoding="utf-8")
    report = with_sweep(read_report(str(pruned / "model.pruned.json")), str(tmp_path / "net.sweep.json"))
    assert report.trade_off is not None
    assert [point.budget for point in report.trade_off.points] == ["ratio=2", "ratio=4"]
    with pytest.raises(InputError, match=r"model\.pruned\.json"):
        with_sweep(report, str(pruned / "model.pruned.json"))


def test_files_of_one_name_are_told_apart(pruned: Path, tmp_path: Path) -> None:
    other = tmp_path / "best"
    other.mkdir()
    paths = [str(MLP), str(pruned / "model.pruned.onnx"), shutil.copy(pruned / "model.pruned.onnx", other)]
    report = compare_checkpoints(paths, machine=CPU)
    assert [model.name for model in report.models] == [
        "model.pt", f"{pruned.name}/model.pruned.onnx", "best/model.pruned.onnx"
    ]  # fmt: skip
    twice = compare_checkpoints([str(MLP), str(MLP)], machine=CPU)
    assert twice.title == "model.pt -> model.pt (2)"
