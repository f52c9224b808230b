"""What an interrupted run leaves, and who may use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prunecli.pipeline.journal import DiskJournal
from prunecli.pipeline.listener import Silent
from prunecli.pipeline.score import score
from prunecli.pipeline.settings import Importance, Machine, Samples, Study

MLP = str(Path(__file__).parents[2] / "sample_models" / "digits_mlp" / "model.pt")
CPU = Machine(device="cpu")


class Noting(Silent):
    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.stop_after, self.done = stop_after, 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        self.done += stage.startswith("oracle")
        if self.stop_after is not None and self.done > self.stop_after:
            raise KeyboardInterrupt


def never() -> Tensor:
    raise AssertionError("it was found before")


def interrupted(folder: Path, conditions: object, found: dict[str, Tensor]) -> Noting:
    listener = Noting()

    def run() -> None:
        with DiskJournal(conditions, listener, folder) as journal:
            for key, value in found.items():
                journal(key, lambda value=value: value)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    return listener


def test_what_was_found_is_found_again(tmp_path: Path) -> None:
    found = {"0/a": torch.tensor([1.0, 2.0]).double(), "0": torch.tensor(0.5).double()}
    assert interrupted(tmp_path, ["x"], found).notes == [
        "kept 2 results: the same command goes on from there"
    ]
    listener = Noting()
    with DiskJournal(["x"], listener, tmp_path) as journal:
        assert journal("new", lambda: torch.tensor(3)).item() == 3
        assert not listener.notes
        for key, value in found.items():
            assert torch.equal(journal(key, never), value)
        assert listener.notes == ["an interrupted run left 2 results: going on from there"]
    assert not list(tmp_path.iterdir())  # it is over: nothing to go on from


def test_other_conditions_find_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path, {"seed": 0}, {"a": torch.tensor(1)})
    listener = Noting()
    with DiskJournal({"seed": 1}, listener, tmp_path) as journal:
        assert journal("a", lambda: torch.tensor(2)).item() == 2
    assert not listener.notes
    assert len(list(tmp_path.iterdir())) == 1  # what the other run left is still there


@pytest.mark.parametrize("content", (b"", b"\xff" * 40, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "))
def test_a_file_that_cannot_be_read_is_found_anew(tmp_path: Path, content: bytes) -> None:
    interrupted(tmp_path, ["x"], {"a": torch.tensor(1)})
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with DiskJournal(["x"], Silent(), tmp_path) as journal:
        assert journal("a", lambda: torch.tensor(2)).item() == 2


def test_a_run_that_found_nothing_new_writes_nothing(tmp_path: Path) -> None:
    assert not interrupted(tmp_path, ["x"], {}).notes
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with DiskJournal(["x"], Silent(), blocked) as journal:
        assert journal("a", lambda: torch.tensor(2)).item() == 2


def test_findings_are_written_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecli.pipeline.journal.SECONDS_BETWEEN_WRITES", 0.0)
    with DiskJournal(["x"], Silent(), tmp_path) as journal:
        journal("a", lambda: torch.tensor(1))
        assert len(list(tmp_path.iterdir())) == 1  # a process that is killed leaves this


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("prunecli.pipeline.journal.user_cache_path", lambda _: tmp_path)
    return tmp_path / "interrupted"


def oracle(listener: Noting, checkpoint: str = MLP, **samples: object) -> dict[str, Tensor]:
    scored = score(
        checkpoint, samples=Samples(**{"samples": 48, "batch_size": 16, **samples}),
        importance=Importance(method=("magnitude", "oracle")), study=Study(against="oracle"),
        machine=CPU, listener=listener,
    )  # fmt: skip
    return {name: torch.cat(list(found.by_group.values())) for name, found in scored.scores.items()}


def test_the_same_command_goes_on_where_it_was_interrupted(cache: Path) -> None:
    whole = Noting()
    expected = oracle(whole)
    assert not list(cache.glob("*"))
    with pytest.raises(KeyboardInterrupt):
        oracle(first := Noting(stop_after=whole.done // 2))
    assert "the same command goes on" in first.notes[-1]
    assert len(list(cache.iterdir())) == 1
    other = Noting()
    oracle(other, batch_size=24)  # another command starts anew
    assert not any("interrupted run" in note for note in other.notes)
    second = Noting()
    found = oracle(second)
    assert any("an interrupted run left" in note for note in second.notes)
    assert 0 < second.done < whole.done
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert not list(cache.iterdir())


def copied(folder: Path) -> Path:
    """Copy a sample model, with a loss of its own and its data beside it; return its checkpoint."""
    sample = Path(MLP).parent
    for name in ("model.py", "model.pt"):
        (folder / name).write_bytes((sample / name).read_bytes())
    (folder / "loss.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n\n"
        "def loss(output, target):\n    return cross_entropy(output, target)\n"
    )
    (folder / "digits.npz").write_bytes((sample.parent / "digits.npz").read_bytes())
    text = (sample / "model.toml").read_text().replace("npz:../", "npz:")
    (folder / "model.toml").write_text(text.replace('loss = "cross-entropy"', 'loss = "loss.py:loss"'))
    return folder / "model.pt"


def change_data(folder: Path) -> None:
    with np.load(folder / "digits.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(folder / "digits.npz", **{name: array[::-1] for name, array in arrays.items()})


def append(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text() + "\n# changed\n")

    return change


@pytest.mark.parametrize(
    "change", (change_data, append("loss.py"), append("model.py")), ids=("data", "loss", "factory")
)
def test_nothing_is_found_again_once_the_data_or_the_code_changed(
    change: Callable[[Path], None], cache: Path, tmp_path: Path
) -> None:
    checkpoint = str(copied(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        oracle(Noting(stop_after=100), checkpoint=checkpoint)
    assert len(list(cache.iterdir())) == 1
    change(tmp_path)
    other = Noting()
    oracle(other, checkpoint=checkpoint)
    assert not any("interrupted run" in note for note in other.notes)
