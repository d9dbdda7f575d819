from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.campaigns.harness._small_job import new_folder, save_small_job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.campaigns.harness._small_job import SavedRoot


@pytest.fixture
def saved_root() -> Iterator[SavedRoot]:
    """Return a root with steps 10, 20 and 30 of the small job."""
    with new_folder() as folder:
        yield save_small_job(folder / "root")
