"""Who writes, who reads and what must agree: every row, every bad report, and a row of tomorrow."""

from __future__ import annotations

from itertools import product

import pytest

from stepseal.layout import (
    PayloadReport,
    Sharing,
    can_read,
    must_agree,
    payload_owner,
    payload_owners,
    payload_problems,
    payload_report,
    rule_of,
    writes_plain,
    writes_replica,
)
from stepseal.layout import _ownership as ownership

NAMES = ("trainer/0", "trainer/1", "replay/0")
Reports = dict[str, PayloadReport | None]


def reports(sharing: Sharing, names: tuple[str, ...] = NAMES) -> Reports:
    return {name: payload_report(sharing, rank, names) for rank, name in enumerate(names)}


@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("num", [1, 2, 3])
def test_each_participant_reads_one_payload_that_one_of_them_writes(
    sharing: Sharing, num: int
) -> None:
    found = reports(sharing, NAMES[:num])
    owners = payload_owners(found)
    first = dict.fromkeys(NAMES[:num], NAMES[0])
    own = {name: name for name in NAMES[:num]}
    assert payload_problems(sharing.value, found) == {}
    assert owners == (own if sharing is Sharing.PER_RANK else first)
    assert {n for n, report in found.items() if report and report.writes} == set(owners.values())


def test_where_no_participant_reads_a_payload_there_is_none() -> None:
    nothing: Reports = dict.fromkeys(NAMES)
    assert payload_problems("replicated", nothing) == {}
    assert payload_owners(nothing) == {}


ZERO, ONE, TWO = NAMES


@pytest.mark.parametrize(
    ("sharing", "changes", "blamed", "text"),
    [
        ("global", {ZERO: PayloadReport("", False)}, set(NAMES), "of the job, found none"),
        ("global", {TWO: PayloadReport("", True)}, {ZERO, TWO}, "found trainer/0 and replay/0"),
        ("global", {ONE: None}, {ONE}, "as the others have, found none"),
        ("global", {ONE: PayloadReport("x", False)}, {ONE}, "that it reads the payload 'x'"),
        ("per_rank", {ONE: PayloadReport(ONE, False)}, {ONE}, "found none"),
        ("per_rank", {ONE: PayloadReport("trainer/9", True)}, {ONE}, "the payload 'trainer/9'"),
        ("per_rank", {ONE: PayloadReport(ZERO, True)}, {ONE}, "the payload 'trainer/0'"),
        ("per_group", {}, set(NAMES), "expected a known sharing, found 'per_group'"),
    ],
)  # fmt: skip
def test_bad_reports_are_named(sharing: str, changes: Reports, blamed: set[str], text: str) -> None:
    good = reports(Sharing.PER_RANK if sharing == "per_rank" else Sharing.GLOBAL)
    found = payload_problems(sharing, good | changes)
    assert set(found) == blamed
    assert all(text in problem for problem in found.values())


def test_a_new_sharing_is_a_row_and_a_coordinate_that_participants_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = ownership.SharingRule(
        coordinate=None,
        agrees=True,
        tensors_are_global=False,
        is_for_trees=True,
        reads=frozenset(),
        any_world=False,
    )
    monkeypatch.setitem(ownership._TABLE, "per_group", row)
    names = [f"trainer/{rank}" for rank in range(4)]
    found: Reports = {
        name: PayloadReport(f"tp={rank % 2}", rank < 2) for rank, name in enumerate(names)
    }
    assert payload_problems("per_group", found) == {}
    assert payload_owners(found) == dict(zip(names, [*names[:2], *names[:2]], strict=True))
    found[names[2]] = PayloadReport("tp=0", True)
    assert set(payload_problems("per_group", found)) == {names[0], names[2]}
    found[names[2]] = PayloadReport("tp=2", False)
    assert "writes the payload 'tp=2', found none" in payload_problems("per_group", found)[names[2]]


def test_which_saved_sharings_can_be_read() -> None:
    once = {Sharing.GLOBAL, Sharing.REPLICATED, Sharing.SHARDED}
    for live, saved in product(Sharing, Sharing):
        alike = {live, saved} <= once or live is saved
        assert can_read(live, saved, "tensors") == alike
        assert can_read(live, saved, "tree") == (alike and saved is not Sharing.SHARDED)
    assert [one for one in Sharing if not rule_of(one).is_for_trees] == [Sharing.SHARDED]
    assert [one for one in Sharing if not rule_of(one).any_world] == [Sharing.PER_RANK]
    assert [one for one in Sharing if not must_agree(one.value)] == [Sharing.PER_RANK]
    assert must_agree("per_group")


@pytest.mark.parametrize("sharing", Sharing)
def test_who_reads_which_saved_payload(sharing: Sharing) -> None:
    owners = payload_owners(reports(sharing))
    for name in NAMES:
        assert payload_owner(sharing, owners, name) == owners[name]
    new = None if sharing is Sharing.PER_RANK else NAMES[0]
    assert payload_owner(sharing, owners, "trainer/7") == new
    assert payload_owner(sharing, {}, NAMES[0]) is None


@pytest.mark.parametrize("sizes", [[], [1], [3], [2, 3], [2, 1, 4]])
def test_exactly_one_replica_writes_each_box(sizes: list[int]) -> None:
    chosen = set()
    for number in range(200):
        places = [
            place
            for place in product(*map(range, sizes))
            if writes_replica(f"layers.{number}", place, sizes)
        ]
        assert len(places) == 1
        chosen.update(places)
    assert len(chosen) == len(list(product(*map(range, sizes))))


def test_plain_tensors_are_written_by_the_lowest_rank() -> None:
    assert [writes_plain(rank) for rank in range(3)] == [True, False, False]
    assert [writes_plain(rank, 2) for rank in range(4)] == [False, False, True, False]
