"""`prunecli score`: what it says when methods are compared, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from prunecli.cli.main import run
from prunecli.importance import Scores
from prunecli.pipeline import scoring

ROOT = Path(__file__).parents[2]
CNN = str(ROOT / "sample_models" / "digits_cnn" / "model.pt")
MLP = str(ROOT / "sample_models" / "digits_mlp" / "model.pt")
STUDY = ("--method", "taylor-fo", "--method", "magnitude", "--against", "oracle", "--samples", "32")
REFERENCES = ["oracle (dataset-sq)", "oracle (batch-abs)"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecli.pipeline.journal.user_cache_path", lambda _: tmp_path)


def test_a_table_of_agreement_with_both_oracles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run(["score", CNN, *STUDY]) == 0
    out = capsys.readouterr().out
    titles = [
        f"Against {name}: {over}" for name in REFERENCES for over in ("mean over 5 layers", "all 256 units")
    ]
    assert [title for title in titles if title not in out] == []
    rows = [line.split() for line in out.splitlines() if line.startswith(("taylor-fo ", "magnitude "))]
    assert [row[0] for row in rows] == ["taylor-fo", "magnitude"] * 4
    assert all(-1 <= float(cell) <= 1 for row in rows for cell in row[1:4])
    assert "Scores by group" not in out


def test_agreement_as_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", CNN, *STUDY, "--format", "csv"]) == 0
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert header == [
        "method", "against", "Pearson", "Spearman", "Kendall",
        "all: Pearson", "all: Spearman", "all: Kendall", "layers skipped",
    ]  # fmt: skip
    assert [row[1] for row in rows] == [name for name in REFERENCES for _ in range(2)]


def test_agreement_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", CNN, *STUDY, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in told["methods"]] == ["taylor-fo", "magnitude"]
    assert [(one["method"], one["against"]) for one in told["agreement"]] == [
        (method, against) for against in REFERENCES for method in ("taylor-fo", "magnitude")
    ]
    first = told["agreement"][0]
    assert set(first["per_layer"]) == set(first["all_layers"]) == {"pearson", "spearman", "kendall"}
    assert first["units"] == sum(map(len, told["methods"][0]["scores"].values()))


def test_a_method_can_be_compared_with_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "magnitude", "--against", "magnitude-l1", "--format", "csv"]
    assert run(["score", CNN, *arguments]) == 0
    _, row = csv.reader(capsys.readouterr().out.splitlines())
    assert row[:2] == ["magnitude", "magnitude-l1"]
    assert float(row[6]) > 0.5


def agreement_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run(["score", CNN, *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return told["agreement"][1] | {"gate": told["methods"][0]["gate"], "bn": told["methods"][0]["score_bn"]}


def test_the_oracle_says_what_a_cut_does_wherever_gates_stand(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Scores without gates agree with it as much, whatever `--gate` and `--score-bn` say."""
    methods = ("--method", "taylor-fo", "--method", "magnitude")
    study = (*methods, "--against", "oracle", "--samples", "32")
    plain = agreement_of(capsys, *study)
    other = agreement_of(capsys, *study, "--gate", "before-bn", "--score-bn", "train")
    assert (plain["all_layers"], plain["per_layer"]) == (other["all_layers"], other["per_layer"])


def test_scores_of_gates_before_normalisations_cut_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "scores.safetensors")
    assert run(["score", CNN, "--gate", "before-bn", "--samples", "32", "--out", file]) == 0
    capsys.readouterr()
    assert run(["prune", CNN, "--scores", file, "--keep", "0.5", "--dry-run"]) == 4
    err = " ".join(capsys.readouterr().err.split())
    assert "gates before the normalisations" in err
    assert "--gate" in err


@pytest.mark.parametrize("amount", ("much", "0", "-1GB", "3 apples"))
def test_an_amount_of_memory_that_is_none(amount: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", CNN, f"--max-memory={amount}"]) == 2
    assert f"`--max-memory {amount}`: write an amount of memory such as 500MB or 4GiB." in " ".join(
        capsys.readouterr().err.split()
    )


def test_little_memory_gives_the_same_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    study = ("--method", "taylor-so", "--against", "oracle", "--samples", "20")
    plain, little = agreement_of(capsys, *study), agreement_of(capsys, *study, "--max-memory", "100kB")
    assert plain["all_layers"] == pytest.approx(little["all_layers"], abs=1e-3)


NOTE = "the network knows these samples by heart"


@pytest.mark.parametrize(("loss", "is_noted"), ((1e9, True), (0.0, False)))
def test_samples_known_by_heart_are_noted_once(
    loss: float, is_noted: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MEMORISED", loss)
    methods = ("--method", "taylor-fo", "--method", "taylor-fo-fg", "--method", "magnitude")
    assert run(["score", MLP, *methods, "--samples", "32", "--format", "table"]) == 0
    assert " ".join(capsys.readouterr().out.split()).count(NOTE) == is_noted
    assert run(["score", MLP, *methods, "--samples", "32", "--json"]) == 0
    told = {one["method"]: one for one in json.loads(capsys.readouterr().out)["methods"]}
    assert any(NOTE in note for note in told["taylor-fo"]["notes"]) is is_noted
    assert told["taylor-fo"]["loss"] == pytest.approx(told["taylor-fo-fg"]["loss"])
    assert told["magnitude"]["loss"] is None
    assert not told["magnitude"]["notes"]


def test_the_oracle_s_two_aggregates_come_from_one_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", MLP, "--method", "oracle", "--samples", "20", "--json"]) == 0
    (alone,) = json.loads(capsys.readouterr().out)["methods"]
    options = ("--method", "oracle", "--method-arg", "aggregate=batch-abs", "--samples", "20", "--json")
    assert run(["score", MLP, *options]) == 0
    (absolute,) = json.loads(capsys.readouterr().out)["methods"]
    for group, values in alone["scores"].items():  # one micro-batch: they differ by the square alone
        expected = torch.tensor(absolute["scores"][group]).square()
        torch.testing.assert_close(torch.tensor(values), expected)


def test_a_method_is_not_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", CNN, "--method", "magnitude", "--against", "magnitude"]) == 2
    expected = "error: `--against magnitude` is the method itself. Add another `--method` to compare.\n"
    assert capsys.readouterr().err == expected


def half_normalised() -> nn.Module:
    """Build a network with one layer that `bn-scale` can score, and one that it cannot."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10)
    )


@pytest.fixture
def mixed(tmp_path: Path) -> list[str]:
    """Return how to score that network by `bn-scale`, and what is left by `magnitude`."""
    torch.save(half_normalised().state_dict(), tmp_path / "mixed.pt")
    spec = ["--spec", f"{__file__}:half_normalised", "--input", "64"]
    return [
        "score", str(tmp_path / "mixed.pt"), *spec, "--method", "bn-scale", "--fallback", "magnitude",
    ]  # fmt: skip


def test_rows_name_the_method_that_really_scored(
    mixed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*mixed, "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert [row[:2] for row in csv.reader(out.splitlines())][1:] == [["bn-scale", "0"], ["magnitude", "3"]]
    assert "warning: `bn-scale` cannot score 1 of 2 groups (`3`): scored by `magnitude`." in err
    assert run([*mixed, "--format", "csv", "--units"]) == 0
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["group", "unit", "bn-scale", "bn-scale: scored by"]
    assert [row[3] for row in rows] == ["bn-scale"] * 8 + ["magnitude"] * 6


def test_notes_are_told_where_no_table_ends_with_them(
    mixed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "`bn-scale` cannot score 1 of 2 groups"
    assert run([*mixed, "--json"]) == 0
    assert f"warning: {note}" in capsys.readouterr().err
    assert run([*mixed, "-q", "--out", str(tmp_path / "scores.safetensors")]) == 0
    assert f"warning: {note}" in capsys.readouterr().err
    assert run([*mixed, "--format", "md"]) == 0
    out, err = capsys.readouterr()
    assert note in out
    assert note not in err


def test_who_filled_in_is_in_the_file(mixed: list[str], tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    assert run([*mixed, "--out", str(path)]) == 0
    assert Scores.from_bytes(path.read_bytes(), "scores").about.fallbacks == {"3": "magnitude"}


@pytest.mark.parametrize(
    ("options", "message"),
    (
        (
            ("--method", "magnitude", "--gate", "before-bn"),
            "`--gate` does nothing for methods without gates, such as `magnitude`. Leave it out.",
        ),
        (
            ("--method", "magnitude", "--preset", "best"),
            "`--preset` does nothing in `score` beside settings that leave nothing to it. Leave it out.",
        ),
    ),
)
def test_options_that_would_do_nothing(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["score", MLP, *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_gate_matters_where_one_method_has_gates(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "magnitude", "--method", "taylor-fo", "--gate", "before-bn", "--samples", "16")
    assert run(["score", MLP, *options, "--json"]) == 0
    capsys.readouterr()
    assert run(["score", MLP, "--method", "magnitude", "--gate", "after-bn", "--json"]) == 0
