from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import overwrite

from stepseal import errors
from stepseal.layout import StepRef, seal
from stepseal.steps import Doubt, in_lineage, lineage_doubt, lineage_limits
from stepseal.steps._claims import (
    INCARNATIONS,
    ClaimRecord,
    check_current,
    claim,
    left_lineage_at,
    read_claims,
)
from stepseal.steps._roots import initialise_root
from stepseal.storage import create_durable, make_dirs, read_bytes
from stepseal.testing import Fail, Fault, FaultyStorage, Lose, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage

PARENT = StepRef(40, "a" * 64, 1)
NOW_S = 1_800_000_000.25


def ready(storage: Storage) -> Storage:
    initialise_root(storage)
    return storage


def test_claims_grow_by_one(storage: Storage) -> None:
    ready(storage)
    assert read_claims(storage) == ()
    assert [claim(storage, None, now_s=NOW_S), claim(storage, PARENT, now_s=NOW_S)] == [1, 2]
    assert read_claims(storage) == (ClaimRecord(1, None), ClaimRecord(2, PARENT))


def test_a_claim_tells_its_time(storage: Storage) -> None:
    ready(storage)
    claim(storage, None, now_s=NOW_S)
    claim(storage, PARENT, now_s=NOW_S + 3600)
    assert [record.claimed_at_s for record in read_claims(storage)] == [NOW_S, NOW_S + 3600]


@pytest.mark.parametrize("text", ["some day", "2026-01-01T00:00:00", "2026-01-01T00:00:00+01:00"])
def test_a_claim_whose_time_has_another_form_counts_without_one(text: str) -> None:
    storage = ready(MemoryStorage())
    create_durable(storage, f"{INCARNATIONS}/1.json", seal(FRESH | {"claimed_at": text}))
    (found,) = read_claims(storage)
    assert (found, found.claimed_at_s) == (ClaimRecord(1, None), None)


def test_claims_of_a_root_that_is_none_are_empty(storage: Storage) -> None:
    assert read_claims(storage) == ()
    with pytest.raises(errors.NotCurrent):
        check_current(storage, 1)


def test_other_names_are_skipped(storage: Storage) -> None:
    ready(storage)
    for name in (
        ".tmp-ab12",
        "0.json",
        "01.json",
        "9.json.bak",
        "x.json",
        "12345678901234567.json",
    ):
        create_durable(storage, f"{INCARNATIONS}/{name}", b"junk")
    assert read_claims(storage) == ()
    assert claim(storage, None, now_s=NOW_S) == 1


def test_claim_of_many_at_once_is_unique() -> None:
    storage = MemoryStorage()
    ready(storage)
    won: list[int] = []

    class Racing(FaultyStorage):
        num_rivals = 5

        def link(self, source: str, target: str) -> None:
            if self.num_rivals:
                self.num_rivals -= 1
                won.append(claim(self, None, now_s=NOW_S))
            super().link(source, target)

    won.append(claim(Racing(storage), None, now_s=NOW_S))
    assert sorted(won) == [1, 2, 3, 4, 5, 6]


def test_claiming_gives_up_when_others_keep_winning() -> None:
    storage = MemoryStorage()
    ready(storage)

    class Losing(FaultyStorage):
        def link(self, source: str, target: str) -> None:
            create_durable(storage, target, b"theirs")
            super().link(source, target)

    with pytest.raises(errors.NotCurrent, match="64 incarnations"):
        claim(Losing(storage), None, now_s=NOW_S)


def test_lost_answer_of_the_link_is_a_claim(storage: Storage) -> None:
    ready(storage)
    lossy = FaultyStorage(storage, [Fault(lambda verb, _: verb == "link", Lose(errno.EIO))])
    assert claim(lossy, None, now_s=NOW_S) == 1
    assert claim(storage, None, now_s=NOW_S) == 2


def test_failed_claim_leaves_numbers_that_still_grow(storage: Storage) -> None:
    ready(storage)
    for at in range(8):
        with suppress(errors.StorageUnavailable):
            claim(FaultyStorage(storage, [Fault(at, Fail(errno.EIO))]), None, now_s=NOW_S)
    before = read_claims(storage)
    assert claim(storage, None, now_s=NOW_S) == len(before) + 1


def test_check_current(storage: Storage) -> None:
    ready(storage)
    claim(storage, None, now_s=NOW_S)
    check_current(storage, 1)
    claim(storage, None, now_s=NOW_S)
    check_current(storage, 2)
    with pytest.raises(errors.NotCurrent, match="another start of the job") as caught:
        check_current(storage, 1)
    assert (caught.value.expected, caught.value.found) == (1, 2)
    with pytest.raises(errors.NotCurrent, match="its file was removed"):
        check_current(storage, 3)


def test_each_flipped_bit_of_a_claim_is_noticed() -> None:
    storage = MemoryStorage()
    ready(storage)
    claim(storage, StepRef(40, "a" * 64, 0), now_s=NOW_S)
    key = f"{INCARNATIONS}/1.json"
    data = read_bytes(storage, key, 1 << 14)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        overwrite(storage, key, bytes(flipped))
        assert read_claims(storage) == (ClaimRecord(1, None, damaged=True),)
    assert claim(storage, None, now_s=NOW_S) == 2
    check_current(storage, 2)


FRESH: dict[str, object] = {
    "incarnation": 1,
    "parent": None,
    "claimed_at": "2026-01-01T00:00:00Z",
    "host": "a",
    "pid": 5,
}
GOOD_PARENT: dict[str, object] = {"step": 40, "manifest_sha256": "a" * 64, "incarnation": 1}
BAD_PARENTS: list[object] = [
    5,
    [],
    {},
    "step-40",
    GOOD_PARENT | {"step": -1},
    GOOD_PARENT | {"step": 10**16},
    GOOD_PARENT | {"step": True},
    GOOD_PARENT | {"step": 40.0},
    GOOD_PARENT | {"manifest_sha256": "a" * 63},
    GOOD_PARENT | {"manifest_sha256": "A" * 64},
    GOOD_PARENT | {"manifest_sha256": "a" * 64 + "\n"},
    GOOD_PARENT | {"manifest_sha256": 5},
    GOOD_PARENT | {"incarnation": 0},
    GOOD_PARENT | {"incarnation": True},
    GOOD_PARENT | {"incarnation": "1"},
    GOOD_PARENT | {"more": 1},
]


def test_claim_of_exactly_this_shape_is_read() -> None:
    for parent, expected in ((None, None), (GOOD_PARENT, PARENT)):
        storage = ready(MemoryStorage())
        create_durable(storage, f"{INCARNATIONS}/1.json", seal(FRESH | {"parent": parent}))
        assert read_claims(storage) == (ClaimRecord(1, expected),)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"incarnation": 2, "parent": None},
        {"incarnation": "1", "parent": None},
        {"incarnation": 1},
        {"incarnation": 1, "parent": 5},
        {"incarnation": 1, "parent": {}},
        {"incarnation": 1, "parent": {"step": "x", "manifest_sha256": "", "incarnation": 0}},
        {"incarnation": 2, "parent": {"step": 1, "manifest_sha256": "", "incarnation": 0}},
        FRESH | {"incarnation": 2},
        FRESH | {"incarnation": True},
        FRESH | {"claimed_at": 5},
        FRESH | {"host": None},
        FRESH | {"pid": "5"},
        FRESH | {"more": 1},
        *(FRESH | {"parent": parent} for parent in BAD_PARENTS),
    ],
)
def test_claim_of_another_shape_is_damaged(body: object) -> None:
    storage = MemoryStorage()
    ready(storage)
    create_durable(storage, f"{INCARNATIONS}/1.json", seal(body))
    assert read_claims(storage) == (ClaimRecord(1, None, damaged=True),)


def test_claim_that_is_a_directory_is_damaged(storage: Storage) -> None:
    ready(storage)
    make_dirs(storage, f"{INCARNATIONS}/1.json")
    assert read_claims(storage) == (ClaimRecord(1, None, damaged=True),)
    assert claim(storage, None, now_s=NOW_S) == 2


def record(number: int, step: int | None = None, parent: int = 0) -> ClaimRecord:
    return ClaimRecord(number, None if step is None else StepRef(step, "a" * 64, parent))


def test_lineage_without_claims_holds_everything() -> None:
    assert lineage_limits([]) == {}
    assert in_lineage({}, 7, 100)


def test_lineage_ends_where_the_next_incarnation_resumed() -> None:
    limits = lineage_limits([record(1), record(2, 40, 1), record(3, 20, 2)])
    assert limits == {3: None, 2: 20, 1: 40}
    assert in_lineage(limits, 1, 40)
    assert not in_lineage(limits, 1, 41)
    assert not in_lineage(limits, 2, 21)
    assert in_lineage(limits, 3, 10_000)


def test_lineage_leaves_out_incarnations_that_nobody_resumed_from() -> None:
    limits = lineage_limits([record(1), record(2), record(3, 40, 1)])
    assert limits == {3: None, 1: 40}
    assert not in_lineage(limits, 2, 1)


def test_fresh_start_begins_a_lineage() -> None:
    assert lineage_limits([record(1), record(2)]) == {2: None}


def test_damaged_claim_hides_its_parent_so_all_older_count() -> None:
    damaged = ClaimRecord(3, None, damaged=True)
    claims = [record(1), record(2), damaged, record(4, 50, 3)]
    assert lineage_limits(claims) == {4: None, 3: 50, 2: None, 1: None}


def test_missing_claim_is_treated_as_damaged() -> None:
    assert lineage_limits([record(1), record(3, 50, 2)]) == {3: None, 2: 50, 1: None}


def timed(number: int, step: int | None = None, parent: int = 0) -> ClaimRecord:
    return replace(record(number, step, parent), claimed_at_s=100.0 * number)


@pytest.mark.parametrize(
    ("claims", "left_at"),
    [
        ([timed(1), timed(2, 10, 1)], 200.0),
        ([timed(1), timed(2, 10, 1), timed(3, 15, 2)], 200.0),
        ([timed(1), timed(2, 10, 1), timed(3, 10, 1)], 200.0),
        ([timed(1), timed(2, 20, 1), timed(3)], 300.0),
        ([timed(1), timed(2, 10, 1), timed(3, 20, 1), timed(4, 15, 2)], 400.0),
        ([timed(1), record(2, 10, 1)], None),
        ([timed(2)], 200.0),
    ],
)
def test_the_claim_that_left_a_step_behind_is_the_last_that_did(
    claims: list[ClaimRecord], left_at: float | None
) -> None:
    assert not in_lineage(lineage_limits(claims), 1, 20)
    assert left_lineage_at(claims, 1, 20) == left_at


def test_a_step_above_all_claims_counts_because_its_claim_was_lost() -> None:
    limits = lineage_limits([ClaimRecord(1, None), ClaimRecord(2, PARENT)])
    assert in_lineage(limits, 3, 50)
    assert not in_lineage(limits, 1, 50)


def test_the_number_of_a_lost_claim_is_not_taken_again(storage: Storage) -> None:
    ready(storage)
    assert claim(storage, None, now_s=NOW_S) == 1
    parent = StepRef(40, "a" * 64, 3)
    assert claim(storage, parent, now_s=NOW_S) == 4
    limits = lineage_limits(read_claims(storage))
    assert in_lineage(limits, 3, 40)
    assert in_lineage(limits, 1, 20)
    assert not in_lineage(limits, 3, 41)


@pytest.mark.parametrize("parent", [3, 4])
def test_lineage_walk_ends_on_records_that_point_forward(parent: int) -> None:
    assert lineage_limits([record(1), record(3, 50, parent)]) == {3: None}


DAMAGED = ClaimRecord(2, None, damaged=True)


@pytest.mark.parametrize(
    ("claims", "highest", "below"),
    [
        ([], 0, None),
        ([record(1)], 1, None),
        ([record(1), record(2, 40, 1)], 1, None),
        ([record(1), DAMAGED, record(3, 40, 1)], 3, None),  # not on the way
        ([record(1), DAMAGED, record(3)], 3, None),  # behind a fresh start
        ([record(1), DAMAGED], 1, 2),
        ([record(1), DAMAGED, record(3, 40, 2)], 3, 2),
        ([record(1), record(3, 40, 2)], 3, 2),
        ([record(1), record(2, 40, 1)], 3, 4),
        ([], 3, 4),
        ([record(1), record(2, 40, 2)], 2, 2),
    ],
)
def test_doubt_begins_below_the_first_record_that_does_not_tell(
    claims: list[ClaimRecord], highest: int, below: int | None
) -> None:
    doubt = lineage_doubt(claims, highest)
    assert (None if doubt is None else doubt.below) == below


def test_doubt_names_the_record_and_covers_what_is_older() -> None:
    doubt = lineage_doubt([record(1), DAMAGED], 1)
    assert doubt == Doubt(2, "incarnations/2.json is damaged")
    assert [doubt.covers(number) for number in (1, 2, 3)] == [True, False, False]
    lost = lineage_doubt([record(1)], 2)
    assert lost == Doubt(3, "incarnations/2.json is missing")
    forward = lineage_doubt([record(1), record(2, 40, 3)], 2)
    assert forward == Doubt(2, "incarnations/2.json resumed from no older incarnation")
