from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.transfer._steps import KEY

from stepseal.storage import LocalStorage, make_dirs
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepseal.storage import Storage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def local(root: Path) -> Iterator[LocalStorage]:
    with LocalStorage.open(root) as storage:
        yield storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    if request.param == "memory":
        yield MemoryStorage()
    else:
        yield request.getfixturevalue("local")


@pytest.fixture
def engine(local: LocalStorage, root: Path) -> Path:
    """Return the folder of the component `engine` in an attempt."""
    make_dirs(local, f"{KEY}/external/engine")
    return root / KEY / "external" / "engine"
