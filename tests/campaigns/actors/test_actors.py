"""Each actor killed in each phase, on real Ray and Monarch: nothing half-committed, nobody hangs.

See `run` for the rounds. They must catch every broken coordinator of `_variants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.campaigns.actors import run as _actors
from tests.campaigns.actors._frameworks import FRAMEWORKS, why_not
from tests.campaigns.actors._member import PHASES

if TYPE_CHECKING:
    from tests.campaigns.harness._sizes import Row, Size

pytestmark = [pytest.mark.slow, pytest.mark.serial]


def check(size: Size, framework: str, capsys: pytest.CaptureFixture[str]) -> Row:
    if (reason := why_not(framework)) is not None:
        pytest.skip(reason)
    row = _actors.run(size, framework)
    with capsys.disabled():
        print("\n" + "\n  ".join([row.text(), *row.notes]))
    assert row.good, "\n".join([*row.violations, *row.missed])
    return row


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_actors_are_killed_in_every_phase(
    framework: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("fast", framework, capsys).cases >= len(PHASES)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_actor_is_killed_in_every_phase(
    framework: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check("nightly", framework, capsys)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_rounds_have_every_actor_in_every_phase(framework: str) -> None:
    ids = _actors.ids_of(framework)
    pairs = {_actors.hit_in(number, ids) for number in range(len(PHASES) * len(ids))}
    assert pairs == {(phase, one) for phase in PHASES for one in ids}
    assert {_actors.hit_in(number, ids)[0] for number in range(len(PHASES))} == {*PHASES}
