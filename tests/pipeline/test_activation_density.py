"""`train --schedule activation-density`, end to end on a sample model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prunecli
from prunecli.cli.main import app
from prunecli.errors import InputError, OutputError, UsageError
from prunecli.pipeline.compress_report import read_report, write_pictures
from prunecli.pipeline.finetune import Finetuned, train_new
from prunecli.pipeline.settings import Choices, Directed, Files, Machine, Run, Samples, Source
from prunecli.recipe import Recipe

SPEC = Path(__file__).parents[2] / "sample_models" / "digits_cnn" / "model.toml"
DATA = SPEC.parents[1] / "digits.npz"
ARGUMENTS = ("least=2", "rho=1", "delta=rising", "tolerance=1", "generations=1")


def train(folder: Path, *arguments: str, **changes: object) -> Finetuned:
    choices = Choices(
        source=Source(spec=str(SPEC)),
        samples=Samples(
            train_data=f"npz:{DATA}#train[:96]", test_data=f"npz:{DATA}#test[:64]", batch_size=32
        ),
        machine=Machine("cpu", threads=1),
        recipe=Recipe(epochs=2, lr=0.05),
        directed=Directed("activation-density", (*ARGUMENTS, *arguments)),
        files=Files(str(folder), onnx=False),
    )
    return train_new(replace(choices, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", ((), ("init=keep", "select=l1", "count=eval", "samples=20", "layers=all"))
)
def test_a_run_writes_a_smaller_model_that_loads_its_report_and_its_pictures(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    found = train(tmp_path, *arguments)
    assert [phase.name for phase in found.report.training.phases] == ["generation 0", "final"]
    assert found.report.totals.macs.after < 0.6 * found.report.totals.macs.before
    assert found.report.parity
    loaded = prunecli.load(found.files[0], spec=SPEC)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images), found.model(images))
    report = read_report(str(tmp_path / "model.trained.json"))
    figures = report.training.figures
    assert figures["final_generation"] == 1
    assert figures["generations"][1]["widths"] == {
        group.name: int(found.report.training.figures["generations"][1]["widths"][group.name])
        for group in prunecli.find_groups(
            prunecli.load_model(prunecli.read_spec(SPEC), SPEC.with_name("model.pt")), (images[:1],)
        ).groups
    }
    assert figures["macs_reduction"] == pytest.approx(report.totals.macs.before / report.totals.macs.after)
    assert {row.phase for row in report.training.rows if row.density} == {"generation 0", "final"}
    drawn = write_pictures(report, str(tmp_path / "again"))
    assert [path.name for path in drawn] == ["curves.svg", "density.svg", "colormap.svg"]
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "model.trained.run" / path.name).read_bytes()
    with pytest.raises(OutputError, match="name another folder"):
        write_pictures(report, str(tmp_path / "again"))


def test_the_same_seed_gives_the_same_file_and_another_run_goes_on_from_it(tmp_path: Path) -> None:
    first, second = (train(tmp_path / name) for name in ("first", "second"))
    assert first.files[0].read_bytes() == second.files[0].read_bytes()
    again = train(
        tmp_path / "first", run=Run(resume=True), files=Files(str(tmp_path / "first"), onnx=False, force=True)
    )
    assert again.files[0].read_bytes() == second.files[0].read_bytes()


def test_a_report_without_training_has_no_pictures(tmp_path: Path) -> None:
    found = train(tmp_path)
    with pytest.raises(InputError, match="nothing was trained"):
        write_pictures(replace(found.report, training=None), str(tmp_path))


def test_options_that_rank_units_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--scope`.*which has rules of its own"):
        train(tmp_path, given=frozenset({"scope"}))


def test_compress_report_draws_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    report = str(tmp_path / "model.trained.json")
    app(["compress-report", report, "--pictures", str(tmp_path / "drawn")], standalone_mode=False)
    assert "density.svg" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        "colormap.svg",
        "curves.svg",
        "density.svg",
    ]
