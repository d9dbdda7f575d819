"""Steps that the storage refuses to move are removed where they lie, and protected as ever."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

import pytest
from tests.retention._kit import (
    NOW_S,
    Meanwhile,
    Stop,
    carry_out,
    die,
    four,
    plan_for,
    prune_now,
    steps_of,
)
from tests.steps._kit import Root, attempt_id, exists

from stepseal.errors import NotCurrent, StorageUnavailable
from stepseal.layout import MANIFEST, Area, encode_manifest
from stepseal.retention import Retention, latest
from stepseal.retention._publications import prune_published
from stepseal.steps import Removal, _in_place
from stepseal.steps._catalog import read_step
from stepseal.steps._leases import take_lease
from stepseal.steps._pins import PINS
from stepseal.steps._retire import Retirement
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import create_durable, read_bytes
from stepseal.testing import Fail, Fault, FaultyStorage, Lose, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Entry, Storage

ALL = ["step-10", "step-20", "step-30", "step-40"]
NUMBERS = [errno.EXDEV, errno.EDQUOT, errno.ENOSPC]


def unmoving(inner: Storage, number: int = errno.EXDEV) -> FaultyStorage:
    """Return storage that refuses to rename what lies in the root or aside."""

    def strikes(verb: str, key: str) -> bool:
        return verb == "rename" and key.startswith(("step-", "published/", SUPERSEDED))

    return FaultyStorage(inner, [Fault(strikes, Fail(number), sticky=True)])


def full(inner: Storage, number: int = errno.EDQUOT) -> FaultyStorage:
    """Return storage at its quota: only removals work."""
    creates = ("rename", "make_dir", "create_file", "link", "write")
    return FaultyStorage(inner, [Fault(lambda verb, _: verb in creates, Fail(number), sticky=True)])


class OnceHidden(FaultyStorage):
    """Something happens right after the first step has lost its manifest."""

    def __init__(self, inner: Storage, happens: Callable[[], object]) -> None:
        super().__init__(inner)
        self._happens: Callable[[], object] | None = happens

    def remove_file(self, key: str) -> None:
        super().remove_file(key)
        if self._happens is not None and key.endswith(MANIFEST):
            happens, self._happens = self._happens, None
            happens()


@pytest.mark.parametrize(
    ("broken", "number"),
    [*((unmoving, number) for number in NUMBERS), (full, errno.EDQUOT), (full, errno.ENOSPC)],
)
def test_they_are_removed_where_they_lie(
    storage: Storage, broken: Callable[[Storage, int], FaultyStorage], number: int
) -> None:
    root = four(storage)
    report = prune_now(broken(storage, number), root)
    assert report.removed == [10, 20, 30]
    assert not report.failures
    assert steps_of(storage) == ["step-40"]
    assert root.names(TRASH) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EPERM])
def test_other_refusals_remove_nothing(storage: Storage, number: int) -> None:
    root = four(storage)
    report = prune_now(unmoving(storage, number), root)
    assert len(report.failures) == 3
    assert steps_of(storage) == ALL


@pytest.mark.parametrize("why", ["pinned", "leased"])
@pytest.mark.parametrize("naive", [False, True])
def test_what_protects_a_step_once_it_is_hidden_brings_it_back(
    storage: Storage, why: str, naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = four(storage)
    before = read_bytes(storage, f"step-10/{MANIFEST}", 1 << 20)
    protect = {
        "pinned": lambda: storage.create_file(f"{PINS}/step-10.json").close(),
        "leased": lambda: take_lease(storage, 10, ttl_s=9, now_s=NOW_S),
    }[why]
    if naive:
        monkeypatch.setattr(Retirement, "_reasons_in_place", lambda *_: "")
    report = prune_now(unmoving(OnceHidden(storage, protect)), root)
    if naive:
        assert not exists(storage, "step-10")
        return
    assert report.removed == [20, 30]
    assert why in report.put_back[10]
    assert read_bytes(storage, f"step-10/{MANIFEST}", 1 << 20) == before
    assert read_step(storage, 10, root.run_id).state == "committed"
    assert root.names(TRASH) == []


def test_what_protects_a_step_before_keeps_it_untouched(storage: Storage) -> None:
    root = four(storage)
    plan = plan_for(storage, root)
    take_lease(storage, 10, ttl_s=9, now_s=NOW_S)
    touched = unmoving(storage)
    report = carry_out(touched, plan, Retention(latest(1)))
    assert "leased" in report.put_back[10]
    assert not [one for one in touched.count.operations() if "step-10/" in str(one)]


def test_a_newer_start_of_the_job_brings_it_back(storage: Storage) -> None:
    root = four(storage)
    with pytest.raises(NotCurrent):
        prune_now(unmoving(OnceHidden(storage, lambda: root.claim(root.head))), root)
    assert steps_of(storage) == ALL
    assert read_step(storage, 10, root.run_id).state == "committed"


def test_guards_that_cannot_be_read_bring_it_back(storage: Storage) -> None:
    class Unreadable(FaultyStorage):
        def list_dir(self, key: str) -> tuple[Entry, ...]:
            if key == PINS and not exists(storage, f"step-10/{MANIFEST}"):
                raise StorageUnavailable("no answer", errno=errno.EIO)
            return super().list_dir(key)

    root = four(storage)
    report = prune_now(unmoving(Unreadable(storage)), root, keep=3)
    assert report.failures == ["no answer"]
    assert read_step(storage, 10, root.run_id).state == "committed"
    assert root.names(TRASH) == []


def rewrite(storage: Storage, root: Root, attempt: str) -> None:
    """Give step 10 a sound manifest again, as another commit or a copy by hand does."""
    found = read_step(storage, 20, root.run_id).manifest
    assert found is not None
    manifest = dataclasses.replace(found, step=10, attempt=attempt)
    create_durable(storage, f"step-10/{MANIFEST}", encode_manifest(manifest))


def test_another_attempt_in_its_place_stays(storage: Storage) -> None:
    root = four(storage)
    plan = plan_for(storage, root, keep=3)
    storage.remove_file(f"step-10/{MANIFEST}")
    rewrite(storage, root, attempt_id(77))
    report = carry_out(unmoving(storage), plan, Retention(latest(3)))
    assert report.put_back == {10: "another attempt has taken its place"}
    assert exists(storage, f"step-10/{MANIFEST}")


def test_a_step_that_moved_in_spite_of_the_refusal_is_left_to_the_next_prune(
    storage: Storage,
) -> None:
    root = four(storage)
    lost = Fault(lambda verb, key: verb == "rename" and "step-10" in key, Lose(errno.EDQUOT))
    report = prune_now(FaultyStorage(storage, [lost]), root, keep=3)
    assert "EDQUOT" in report.failures[0]
    assert prune_now(storage, root, keep=3).removed_trash
    assert (steps_of(storage), root.names(TRASH)) == (ALL[1:], [])


def test_without_the_trash_there_is_no_grace_so_it_stays(storage: Storage) -> None:
    root = four(storage)
    report = prune_now(unmoving(storage), root, keep=3, trash_grace_s=60)
    assert "without a grace" in report.failures[0]
    assert steps_of(storage) == ALL
    assert prune_now(unmoving(storage), root, keep=3).removed == [10]  # the advice works


# -- crashes ---------------------------------------------------------------------------------


def crash_at(inner: Storage, index: int) -> FaultyStorage:
    """Return storage on which everything ends before one operation."""

    def before(number: int, _verb: str, _key: str) -> None:
        if number == index:
            die()

    return FaultyStorage(inner, before=before)


def left_by_crashes(broken: Callable[[Storage], FaultyStorage]) -> list[list[str]]:
    """Crash a prune in place before each of its operations; return what the next one leaves."""
    left = []
    for index in range(1000):
        storage = MemoryStorage()
        root = four(storage)
        try:
            prune_now(crash_at(broken(storage), index), root, keep=3)
        except Stop:
            assert read_step(storage, 40, root.run_id).state == "committed"
            report = prune_now(broken(storage), root, keep=3)
            assert not report.failures
            left.append(steps_of(storage) + root.names(TRASH))
        else:
            return left
    raise AssertionError("it never ends")


def test_the_next_prune_finishes_after_a_crash_at_any_operation() -> None:
    left = left_by_crashes(unmoving)
    assert len(left) > 8
    assert left == [ALL[1:]] * len(left)


def test_a_naive_removal_without_a_note_in_the_trash_leaves_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_in_place, "_note", lambda name: f"{TRASH}/{name.with_fate('')}")
    assert [names for names in left_by_crashes(unmoving) if "step-10" in names]


def test_a_step_that_is_whole_again_is_not_finished(storage: Storage) -> None:
    root = four(storage)
    with pytest.raises(Stop):
        prune_now(unmoving(OnceHidden(storage, die)), root, keep=3)
    assert [name.rpartition(".")[2] for name in root.names(TRASH)] == ["in-place"]
    rewrite(storage, root, attempt_id(1001))
    prune_now(storage, root, keep=4)
    assert read_step(storage, 10, root.run_id).state == "committed"
    assert root.names(TRASH) == []


# -- other areas -----------------------------------------------------------------------------


def test_superseded_folders_go_in_place_too(storage: Storage) -> None:
    root = four(storage)
    root.claim(root.commit(50))
    name = f"step-20.1.{attempt_id(7)}.{1000:08x}{'0' * 8}"
    storage.rename("step-20", f"{SUPERSEDED}/{name}")
    report = prune_now(unmoving(storage), root, keep=9)
    assert report.removed_superseded == [name]
    assert (root.names(SUPERSEDED), root.names(TRASH)) == ([], [])


@pytest.mark.parametrize("crash", [False, True])
def test_a_whole_step_in_the_trash_goes_in_place_and_never_comes_back_in_part(
    storage: Storage, crash: bool
) -> None:
    root = four(storage)
    prune_now(storage, root, keep=3, trash_grace_s=60)
    (name,) = root.names(TRASH)
    if crash:
        with pytest.raises(Stop):
            prune_now(full(OnceHidden(storage, die)), root, keep=3)
    report = prune_now(full(storage), root, keep=3)
    assert report.removed_trash == [name]
    assert (steps_of(storage), root.names(TRASH)) == (ALL[1:], [])


def test_publications_go_in_place_too(storage: Storage) -> None:
    root = Root(storage)
    for version in (1, 2, 3):
        root.publish_version(version)
    removal = Removal(unmoving(storage), lambda: NOW_S)
    dying = Removal(unmoving(OnceHidden(storage, die)), lambda: NOW_S)
    with pytest.raises(Stop):
        prune_published(dying, root.run_id, root.number, 1, inspect=lambda *_: ())
    report = prune_published(removal, root.run_id, root.number, 1, inspect=lambda *_: ())
    assert report is not None
    assert (report.removed, len(report.removed_trash)) == ([2], 1)
    assert root.names(Area.PUBLISHED.folder) == ["v-3"]
    assert root.names(TRASH) == []


def test_a_step_that_moves_is_never_removed_in_place(storage: Storage) -> None:
    root = four(storage)
    moved = Meanwhile(storage, lambda: None)
    prune_now(moved, root)
    assert not [one for one in moved.count.operations() if "in-place" in str(one)]


def test_without_a_note_for_another_reason_than_room_it_stays(storage: Storage) -> None:
    root = four(storage)
    note = Fault(lambda verb, key: verb == "make_dir" and "in-place" in key, Fail(errno.EIO))
    report = prune_now(unmoving(FaultyStorage(storage, [note])), root, keep=3)
    assert "EIO" in report.failures[0]
    assert read_step(storage, 10, root.run_id).state == "committed"
