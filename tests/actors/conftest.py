from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.actors._owners import MADE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def participants_are_closed() -> Iterator[None]:
    """Close what a test made, as the end of an actor's process does."""
    yield
    while MADE:
        MADE.pop().close()
