"""`prunecli doctor`: what it finds on this machine, and what it says of one that is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import pytest

from prunecli.cli.main import run
from prunecli.pipeline import doctor
from prunecli.pipeline.versions import PACKAGES


def test_a_machine_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_well"]
    assert {part["name"]: part["version"] for part in found["parts"] if part["needed"]} == {
        name: version(name) for name in (*PACKAGES, "onnxscript")
    }
    assert found["devices"][0]["name"] == "cpu"
    assert found["chosen"] in {device["name"] for device in found["devices"]}


def test_every_form_names_packages_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("table", "md", "csv"):
        assert run(["doctor", "--format", form]) == 0
        text = capsys.readouterr().out
        assert "onnxruntime" in text
        assert ("`--device auto` is" in text) == (form != "csv")


def without(name: str) -> Callable[[str], str]:
    """Return a look-up of versions in which one package is not installed."""

    def look_up(asked: str) -> str:
        if asked == name:
            raise PackageNotFoundError(asked)
        return version(asked)

    return look_up


@pytest.mark.parametrize(("name", "code"), (("onnxruntime", 3), ("timm", 0)))
def test_what_is_missing_is_said(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "version", without(name))
    assert run(["doctor"]) == code
    shown = capsys.readouterr()
    assert "not installed" in shown.out
    assert ("is of no use here" in shown.err) == (code == 3)


def test_a_package_that_does_not_load_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(name: str) -> None:
        if name == "torch":
            raise OSError("libsomething.so: no such file")

    monkeypatch.setattr(doctor, "import_module", load)
    assert run(["doctor", "--format", "csv"]) == 3
    assert "cannot be imported: libsomething.so: no such file" in capsys.readouterr().out
    assert doctor.examine().chosen is None
