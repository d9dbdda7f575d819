"""What manifests say of durability, and that whoever runs the job is told why it is less."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tests.steps._kit import FakeIndexer

from stepseal.steps import OwnedSteps
from stepseal.storage import SyncReport
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    import pytest


class Doubtful(MemoryStorage):
    """Memory that says what memory is."""

    def sync_support(self) -> SyncReport:
        return SyncReport(("tmpfs at /runs is in memory", "directories cannot be synced"))


def warnings_of(storage: MemoryStorage, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "stepseal"):
        OwnedSteps(storage, FakeIndexer())
    return [record.getMessage() for record in caplog.records]


def test_best_effort_is_told_once_with_every_reason_and_what_to_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (told,) = warnings_of(Doubtful(), caplog)
    assert "best-effort" in told
    assert "tmpfs at /runs is in memory; directories cannot be synced" in told
    assert "stepseal doctor" in told


def test_storage_without_doubts_is_not_talked_about(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(MemoryStorage(), caplog) == []
