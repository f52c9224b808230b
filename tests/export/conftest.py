"""The networks of small_nets, ready to be saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.small_nets import CASES, SOURCE, Pruned, prune


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the networks' source."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "nets.py").write_text(SOURCE, encoding="utf-8")
    return folder


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def pruned(request: pytest.FixtureRequest, home: Path) -> Pruned:
    return prune(request.param, home)


@pytest.fixture
def net(home: Path) -> Pruned:
    return prune(CASES["net"], home)
