"""Who writes, who reads and what must agree: every row, every bad report, and a row of tomorrow."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepseal.layout import (
    Division,
    PayloadReport,
    Sharing,
    agreeing,
    can_read,
    divided,
    fits_world,
    holds_own_keys,
    payload_owner,
    payload_owners,
    payload_problems,
    payload_report,
    rule_of,
    shared_out,
    writes_plain,
    writes_replica,
)
from stepseal.layout import _ownership as ownership

NAMES = ("trainer/0", "trainer/1", "replay/0")
Reports = dict[str, PayloadReport | None]


WITHOUT_SETS = [one for one in Sharing if rule_of(one).coordinate is not None]


def reports(sharing: Sharing | Division, names: tuple[str, ...] = NAMES) -> Reports:
    return {name: payload_report(sharing, rank, names) for rank, name in enumerate(names)}


@pytest.mark.parametrize("sharing", WITHOUT_SETS)
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
        ("per_rank", dict.fromkeys(NAMES), set(NAMES), "expected a payload that it reads"),
        ("magic", {}, set(NAMES), "expected a known sharing, found 'magic'"),
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
        has_replicas=False,
        tensors_are_global=False,
        is_for_trees=True,
        reads=frozenset(),
        any_world=False,
    )
    monkeypatch.setitem(ownership._TABLE, "per_box", row)
    names, axes = [f"trainer/{rank}" for rank in range(4)], {"tp": 2}
    found: Reports = {
        name: PayloadReport(f"tp={rank % 2}", rank < 2) for rank, name in enumerate(names)
    }
    assert payload_problems("per_box", found, axes) == {}
    assert payload_owners(found) == dict(zip(names, [*names[:2], *names[:2]], strict=True))
    found[names[2]] = PayloadReport("tp=0", True)
    assert set(payload_problems("per_box", found, axes)) == {names[0], names[2]}
    found[names[2]] = PayloadReport("tp=2", False)
    assert "writes the payload 'tp=2', found none" in payload_problems("per_box", found)[names[2]]


TENSOR_PARALLEL = divided(Sharing.PER_GROUP, {"tp": 2}, {"tp=0": [0, 2], "tp=1": [3, 1]})
FOUR = tuple(f"trainer/{rank}" for rank in range(4))


def test_the_lowest_rank_of_each_set_writes_for_it() -> None:
    found = reports(TENSOR_PARALLEL, FOUR)
    assert payload_problems("per_group", found, {"tp": 2}) == {}
    assert payload_owners(found) == dict(zip(FOUR, (*FOUR[:2], *FOUR[:2]), strict=True))


@pytest.mark.parametrize(
    ("changes", "axes", "blamed", "text"),
    [
        (dict.fromkeys(FOUR), {"tp": 2}, set(FOUR), "expected a payload that it reads"),
        ({FOUR[3]: None}, {"tp": 2}, {FOUR[3]}, "as the others have, found none"),
        ({}, {"tp": 3}, set(FOUR), "expected a set for each coordinate of {'tp': 3}, found 2 sets"),
        ({}, {"tp": 10**9}, set(FOUR), "found 2 sets"),
        ({}, {}, set(FOUR), "found 2 sets"),
        ({}, {"pp": 2}, set(FOUR), "expected a coordinate on {'pp': 2}, found 'tp="),
        ({FOUR[2]: PayloadReport("tp=0", True)}, {"tp": 2}, {FOUR[0], FOUR[2]}, "0 and trainer/2"),
        ({FOUR[1]: PayloadReport("tp=1", False)}, {"tp": 2}, {FOUR[1], FOUR[3]}, "found none"),
    ],
)  # fmt: skip
def test_sets_that_do_not_cover_the_axes_are_refused(
    changes: Reports, axes: dict[str, int], blamed: set[str], text: str
) -> None:
    found = payload_problems("per_group", reports(TENSOR_PARALLEL, FOUR) | changes, axes)
    assert set(found) == blamed
    assert all(text in problem for problem in found.values())


def test_sets_may_change_their_size_but_not_the_axes_along_which_they_differ() -> None:
    alone = divided(Sharing.PER_GROUP, {"tp": 2}, {"tp=0": [0], "tp=1": [1]})
    wider = divided(Sharing.PER_GROUP, {"tp": 4}, {f"tp={rank}": [rank] for rank in range(4)})
    assert fits_world(alone, 2, TENSOR_PARALLEL, 4)
    assert not fits_world(wider, 4, TENSOR_PARALLEL, 4)
    assert fits_world(Sharing.REPLICATED, 2, Sharing.GLOBAL, 4)
    assert [fits_world(Sharing.PER_RANK, num, Sharing.PER_RANK, 4) for num in (4, 2)] == [
        True,
        False,
    ]


STAGES = divided(Sharing.SHARDED, {"pp": 2}, {"pp=0": [0, 2], "pp=1": [1, 3]})


def test_stages_have_a_payload_each_and_any_division_of_them_reads_all() -> None:
    found = reports(STAGES, FOUR)
    assert payload_problems("sharded", found, {"pp": 2}) == {}
    assert payload_owners(found) == dict(zip(FOUR, (*FOUR[:2], *FOUR[:2]), strict=True))
    found[FOUR[3]] = PayloadReport("pp=2", True)
    assert payload_problems("sharded", found, {"pp": 2}).keys() == set(FOUR)
    assert holds_own_keys(STAGES)
    assert not any(map(holds_own_keys, (*Sharing, TENSOR_PARALLEL)))
    three = divided(Sharing.SHARDED, {"rank": 3}, {f"rank={rank}": [rank] for rank in range(3)})
    assert fits_world(three, 3, STAGES, 4)
    assert fits_world(Sharing.REPLICATED, 3, STAGES, 4)
    assert can_read(Sharing.GLOBAL, STAGES, "tensors")
    assert not can_read(TENSOR_PARALLEL, STAGES, "tensors")
    assert not rule_of(STAGES).is_for_trees


def test_the_coordinate_decides_which_payload_of_a_set_is_read() -> None:
    owners = payload_owners(reports(TENSOR_PARALLEL, FOUR))
    shuffled = dict(sorted(owners.items(), reverse=True))  # documents sort keys in their own way
    for coordinate, owner in (("tp=0", FOUR[0]), ("tp=1", FOUR[1]), ("tp=2", None), (None, None)):
        found = payload_owner(
            TENSOR_PARALLEL, shuffled, FOUR[0], coordinate=coordinate, participants=FOUR
        )
        assert found == owner


def test_which_saved_sharings_can_be_read() -> None:
    once = {Sharing.GLOBAL, Sharing.REPLICATED, Sharing.SHARDED}
    for live, saved in product(Sharing, Sharing):
        alike = {live, saved} <= once or live is saved
        assert can_read(live, saved, "tensors") == alike
        assert can_read(live, saved, "tree") == (alike and saved is not Sharing.SHARDED)
    assert [one for one in Sharing if not rule_of(one).is_for_trees] == [Sharing.SHARDED]
    own = [Sharing.PER_RANK, Sharing.PER_GROUP, Sharing.PER_NODE]
    assert [one for one in Sharing if not rule_of(one).any_world] == own
    assert can_read(TENSOR_PARALLEL, TENSOR_PARALLEL, "tree")
    assert not can_read(TENSOR_PARALLEL, Sharing.PER_NODE, "tree")


def test_who_must_agree_with_whom() -> None:
    assert [one for one in Sharing if agreeing(one.value, "") == ""] == WITHOUT_SETS[:3]
    assert agreeing("per_rank", "trainer/0") is None
    assert agreeing("per_group", "tp=1") is agreeing("per_node", "tp=1") is None
    assert agreeing("magic", "x") == ""
    assert agreeing("sharded", "pp=1") == ""
    assert agreeing("sharded", "pp=1", has_sets=True) == "pp=1"
    assert agreeing("replicated", "pp=1", has_sets=True) == ""
    alone = {Sharing.GLOBAL, Sharing.PER_RANK}
    assert {one for one in Sharing if not rule_of(one).has_replicas} == alone


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_equal_tensors_are_shared_out_evenly_by_bytes(sizes: dict[str, int], num: int) -> None:
    owners = shared_out(sizes, num)
    assert owners.keys() == sizes.keys()
    loads = [sum(sizes[key] for key in owners if owners[key] == rank) for rank in range(num)]
    largest = max(sizes.values(), default=0)
    assert max(loads) - min(loads) <= largest
    assert shared_out(dict(reversed(sizes.items())), num) == owners


@pytest.mark.parametrize("sharing", WITHOUT_SETS)
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
