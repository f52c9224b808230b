from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.seeds import grow


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one valid file of each kind; nobody writes there."""
    folder = tmp_path_factory.mktemp("seeds")
    grow(folder)
    return folder
