from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stepseal.storage import LocalStorage
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.storage import Storage


@pytest.fixture(params=["memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else LocalStorage.create(tmp_path / "root")


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    """A root at `tmp_path / "root"`."""
    return LocalStorage.create(tmp_path / "root")
