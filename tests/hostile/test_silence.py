"""What the program tells nobody: no connection is opened, and files do not say who made them, or where."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunecli.cli.main import run
from tests.hostile.seeds import grow

SECRET = "hunter2-of-the-environment"
USER = "somebody-with-a-long-name"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with files of every command, made where no connection can be opened."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a connection was opened")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            patch.setenv(name, USER)
        patch.setenv("API_TOKEN", SECRET)
        folder = tmp_path_factory.mktemp("written")
        patch.chdir(folder)
        grow(folder)
        for form in ("html", "md", "csv", "json"):
            words = ("compress-report", "net.pt", "net.pruned.safetensors", "net.pruned.onnx", "--latency")
            assert run([*words, "--spec", "net.toml", "--out", f"all.{form}", "-q"]) == 0
        loader = ("export", "net.pruned.safetensors", "--loader", "load.py", "--spec", "net.toml", "-q")
        assert run([*loader]) == 0
        assert run(["init", "net.pt", "--out", "new.toml"]) == 0
        yield folder


def test_files_do_not_tell_where_and_by_whom_they_were_made(written: Path) -> None:
    assert getpass.getuser()
    others = {"__pycache__", "dcp"}  # by Python, and by PyTorch, whose index names the user
    found = [path for path in written.rglob("*") if path.is_file() and not others & set(path.parts)]
    assert len(found) > 30
    home = str(Path.home())
    for text in (str(written), SECRET, USER, socket.gethostname(), *([home] if len(home) > 5 else [])):
        telling = [path.name for path in found if text.encode() in path.read_bytes()]
        assert telling == [], text
