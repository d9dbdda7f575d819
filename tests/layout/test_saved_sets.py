"""The sets of a component, as a manifest records them and as a reader gets them back."""

from __future__ import annotations

import pytest

from stepseal.layout import (
    Division,
    Sharing,
    divided,
    payload_owners,
    payload_report,
    saved_sharing,
    sets_option,
)

FOUR = tuple(f"trainer/{rank}" for rank in range(4))


@pytest.mark.parametrize("sharing", [Sharing.PER_GROUP, Sharing.PER_NODE, Sharing.SHARDED])
def test_the_sets_of_a_save_come_back(sharing: Sharing) -> None:
    division: Division = divided(sharing, {"pp": 2}, {"pp=0": [0, 2], "pp=1": [1, 3]})
    reports = {name: payload_report(division, rank, FOUR) for rank, name in enumerate(FOUR)}
    owned = {name: report.coordinate for name, report in reports.items() if report.writes}
    option = sets_option(dict(division.axes), owned)
    assert saved_sharing(sharing.value, payload_owners(dict(reports)), option, FOUR) == division


@pytest.mark.parametrize("sharing", [Sharing.GLOBAL, Sharing.SHARDED, Sharing.PER_RANK])
def test_a_sharing_without_sets_comes_back_as_it_is(sharing: Sharing) -> None:
    assert saved_sharing(sharing.value, {}, {"fresh": {}}, FOUR) is sharing
