from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.seeds import SECRETS, grow


@contextmanager
def observed() -> Iterator[None]:
    """Let no connection be opened, and let the environment hold what no file may tell."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a connection was opened")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one valid file of each kind; nobody writes there."""
    folder = tmp_path_factory.mktemp("seeds")
    with observed():
        grow(folder)
    return folder
