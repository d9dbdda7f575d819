"""After a power loss at any operation, each step is absent or whole, none that was acknowledged is
lost, the newest is chosen, and the job goes on; see `_power_loss`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.campaigns import _power_loss

if TYPE_CHECKING:
    from tests.campaigns._sizes import Row

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


@pytest.mark.nightly
def test_power_loss_in_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    row = _power_loss.run("nightly")
    check(row, capsys)
    assert row.cases >= 50_000
