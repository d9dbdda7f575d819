"""After a power loss at any operation, each step is absent or whole, none that was acknowledged is
lost, the newest is chosen, and the job goes on; see `run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.campaigns.power_loss import run as _power_loss

if TYPE_CHECKING:
    from tests.campaigns.harness._sizes import Row

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def check(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert not row.violations, "\n".join(row.violations)
    assert not row.missed


def test_power_loss_after_any_operation_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    row = _power_loss.run("fast")
    check(row, capsys)
    assert row.cases >= 3000


def test_a_stored_recording_says_the_same_of_each_image() -> None:
    for name in ("pruning", "after-loss-in-exchange"):
        recording = _power_loss.record(name)
        path = _power_loss.store(recording)
        again = _power_loss.load(path)
        path.unlink()
        assert (again.keep, again.num_participants) == (recording.keep, recording.num_participants)
        for at in range(0, len(recording.operations), 40):
            outcome = _power_loss.try_all(again, 0, only=(at, 1))
            assert not outcome.violations, (again.operations[at].text, outcome.violations)


@pytest.mark.nightly
def test_power_loss_in_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    row = _power_loss.run("nightly")
    check(row, capsys)
    assert row.cases >= 50_000
