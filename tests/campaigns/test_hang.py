"""Whoever is killed, stopped, blocked or cut off, in whatever phase: every call of everybody else
returns by its deadline with a typed error that names who, storage is sound, and the job resumes.

See `_hang_cases` for the matrix. The same proofs must catch deliberately broken protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.campaigns import _hang

if TYPE_CHECKING:
    from tests.campaigns._sizes import Row, Size

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14_400)]


def check(size: Size, capsys: pytest.CaptureFixture[str]) -> Row:
    row = _hang.run(size)
    with capsys.disabled():
        print("\n" + "\n  ".join([row.text(), *row.notes]))
    assert row.good, "\n".join([*row.violations, *row.missed])
    return row


def test_nobody_hangs_whoever_is_hit(capsys: pytest.CaptureFixture[str]) -> None:
    row = check("fast", capsys)
    assert row.cases > 200


@pytest.mark.nightly
def test_nobody_hangs_in_jobs_of_up_to_eight(capsys: pytest.CaptureFixture[str]) -> None:
    check("nightly", capsys)
