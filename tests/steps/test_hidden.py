"""What prunes and superseding commits left out of its place, and what comes back."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import FakeIndexer, Root, attempt_id, damage, exists

from stepseal import errors
from stepseal.layout import MANIFEST
from stepseal.steps._catalog import read_step
from stepseal.steps._hidden import find_pruned, put_back_pruned
from stepseal.steps._leases import take_lease
from stepseal.steps._pins import pin
from stepseal.steps._publish import publish
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.steps._select import Selection, select
from stepseal.storage import NotSupported, create_durable, make_dirs, read_bytes
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import ReadHandle, Storage

NOW_S = 2_000_000_000.0


def inspect(storage: Storage, key: str, manifest: Manifest) -> Sequence[str]:
    return FakeIndexer().inspect(storage, key, manifest, exact=False)


def choose(
    storage: Storage, root: Root, step: int | None = None, exclude: Collection[int] = ()
) -> Selection:
    return select(storage, root.run_id, step=step, exclude=exclude, inspect=inspect)


def pruned(step: int, incarnation: int, attempt: int = 1) -> str:
    return f"step-{step}.{incarnation}.{attempt_id(attempt)}.{'0' * 16}.pruned"


def test_exactly_the_step_that_the_claim_descends_from_is_put_back(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    root.claim()
    parent = root.commit(10)
    root.commit(20)
    root.claim(parent)
    manifest = read_bytes(storage, f"step-10/{MANIFEST}", 1 << 20)
    storage.rename("step-10", f"{TRASH}/{pruned(10, 2, 2001)}")
    storage.rename("step-20", f"{TRASH}/{pruned(20, 2, 2002)}")
    strange = {  # most come before the good one in a listing
        "mine": manifest,
        "step-10": manifest,
        pruned(11, 2, 2001): manifest,  # of another step
        pruned(10, 2, 0): manifest + b" ",  # damaged
        pruned(10, 2, 0).replace("pruned", "deleting"): manifest,  # half of it may be gone
    }
    for name, data in strange.items():
        storage.make_dir(f"{TRASH}/{name}")
        create_durable(storage, f"{TRASH}/{name}/{MANIFEST}", data)
    storage.make_dir(f"{TRASH}/{pruned(10, 2, 3)}")  # without a manifest
    put_back_pruned(storage, NOW_S)
    assert read_step(storage, 10, root.run_id).ref() == parent
    left = {*strange, pruned(10, 2, 3), pruned(20, 2, 2002)}
    assert set(root.names(TRASH)) == left
    put_back_pruned(storage, NOW_S)
    assert set(root.names(TRASH)) == left


def test_nothing_is_put_back_beside_what_stands_in_the_place_of_the_parent(
    storage: Storage,
) -> None:
    root = Root(storage)
    root.claim(root.commit(10))
    make_dirs(storage, f"{TRASH}/{pruned(10, 1)}")
    damage(storage, 10)
    put_back_pruned(storage, NOW_S)
    assert root.names(TRASH) == [pruned(10, 1)]
    assert read_bytes(storage, f"step-10/{MANIFEST}", 100) == b"{}"


def prune_dies(storage: Storage, step: int) -> str:
    """Move a step as a prune does that dies before its second look; return the folder's name."""
    manifest = read_step(storage, step, None).manifest
    assert manifest is not None
    name = f"step-{step}.{manifest.incarnation}.{manifest.attempt}.{'0' * 16}.pruned"
    storage.rename(f"step-{step}", f"{TRASH}/{name}")
    return name


@pytest.mark.parametrize("how", ["pinned", "leased", "lease expired", "neither"])
def test_a_step_that_was_protected_before_its_prune_died_is_put_back(
    storage: Storage, how: str
) -> None:
    root = Root(storage)
    root.commit(10)
    root.commit(20)
    if how == "pinned":
        pin(storage, 10, root.run_id)
    elif how != "neither":
        now_s = NOW_S if how == "leased" else NOW_S - 1000
        take_lease(storage, 10, ttl_s=900, now_s=now_s)
    name = prune_dies(storage, 10)
    put_back_pruned(storage, NOW_S)
    is_back = how in ("pinned", "leased")
    assert exists(storage, "step-10") == is_back
    assert root.names(TRASH) == ([] if is_back else [name])


def test_a_whole_step_in_the_trash_is_resumed_from_before_a_restore_gives_up(
    storage: Storage,
) -> None:
    root = Root(storage)
    for step in (10, 20, 30):
        root.commit(step)
    left = prune_dies(storage, 10)
    prune_dies(storage, 20)
    damage(storage, 30)
    found = choose(storage, root)
    assert found.entry is not None
    assert found.entry.step == 20
    assert set(found.reasons) == {"step-30"}
    assert root.names(TRASH) == [left]
    again = choose(storage, root, exclude=(20,))
    assert again.entry is not None
    assert again.entry.step == 10


def test_the_trash_is_left_alone_while_a_step_can_be_resumed_from(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    root.commit(20)
    prune_dies(storage, 20)
    found = choose(storage, root)
    assert found.entry is not None
    assert found.entry.step == 10


def test_a_step_that_was_asked_for_comes_back_from_the_trash(storage: Storage) -> None:
    root = Root(storage)
    head = root.commit(10)
    root.commit(20)
    root.claim(head)  # 20 is outside the lineage, but who names a step wants that one
    name = prune_dies(storage, 20)
    with pytest.raises(errors.StepNotFound):
        choose(storage, root, step=30)
    assert root.names(TRASH) == [name]
    found = choose(storage, root, step=20)
    assert found.entry is not None
    assert found.entry.state == "committed"
    assert root.names(TRASH) == []


@pytest.mark.parametrize(
    "what",
    ["outside", "not resumable", "damaged", "incomplete", "unreadable", "other run", "taken"],
)
def test_what_cannot_be_resumed_from_stays_in_the_trash(storage: Storage, what: str) -> None:
    root = Root(storage)
    head = root.commit(10)
    if what == "not resumable":
        staging, manifest = root.prepare(20)
        partial = dataclasses.replace(manifest, resumable=False)
        publish(storage, staging, partial, indexer=root.indexer, deadline_passed=lambda: False)
    else:
        root.commit(20)
    if what == "outside":
        root.claim(head)
    elif what == "damaged":
        damage(storage, 20)
        storage.rename("step-20", f"{TRASH}/step-20.1.{attempt_id(1002)}.{'0' * 16}.pruned")
    elif what == "incomplete":
        storage.remove_file("step-20/parts/trainer/0.json")
    elif what == "other run":
        root.run_id = "f" * 32
    if what != "damaged":
        prune_dies(storage, 20)
    if what == "taken":
        make_dirs(storage, "step-20")
    damage(storage, 10)

    class Unreadable(FaultyStorage):
        def open_read(self, key: str) -> ReadHandle:
            if key.startswith(TRASH) and what == "unreadable":
                raise errors.StorageUnavailable("bad sector", errno=errno.EIO)
            return super().open_read(key)

    found = choose(Unreadable(storage), root)
    assert (found.entry, found.has_commits) == (None, True)
    assert len(root.names(TRASH)) == 1


def test_a_root_is_not_empty_between_the_two_moves_of_superseding(storage: Storage) -> None:
    class Killed(BaseException):
        pass

    class Flagless(FaultyStorage):
        def exchange(self, first: str, second: str) -> None:
            raise NotSupported("no such call")

        def rename(self, source: str, target: str, *, replace: bool = False) -> None:
            super().rename(source, target, replace=replace)
            if target.startswith(SUPERSEDED):
                raise Killed

    root = Root(storage)
    root.commit(10)
    root.claim()  # a fresh start
    before = choose(storage, root)
    staging, manifest = root.prepare(10)
    root.storage = Flagless(storage)
    with pytest.raises(Killed):
        root.publish(staging, manifest)
    found = choose(storage, root)
    assert (found.entry, found.has_commits) == (before.entry, before.has_commits) == (None, True)
    ((key, reason),) = found.reasons.items()
    assert key.startswith(f"{SUPERSEDED}/step-10.2.")
    assert "superseded" in reason


@pytest.mark.parametrize("what", ["pruned", "empty", "put back meanwhile", "no control folders"])
def test_only_whole_steps_of_ours_keep_a_root_from_counting_as_empty(
    storage: Storage, what: str
) -> None:
    root = Root(storage)
    head = root.commit(10)
    root.claim()
    name = prune_dies(storage, 10)
    watched = storage
    if what == "empty":
        storage.rename(f"{TRASH}/{name}", "elsewhere")
        storage.make_dir(f"{TRASH}/{name}")
        storage.make_dir(f"{SUPERSEDED}/mine")
        storage.make_dir(f"{SUPERSEDED}/{pruned(10, 2).removesuffix('.pruned')}")
    elif what == "no control folders":
        storage.rename(".stepseal", "elsewhere")
    elif what == "put back meanwhile":

        class PutBack(FaultyStorage):
            def stat(self, key: str):  # type: ignore[no-untyped-def] # noqa: ANN202
                if key == f"{TRASH}/{name}" and not exists(storage, "step-10"):
                    storage.rename(key, "step-10")
                return super().stat(key)

        watched = PutBack(storage)
    found = choose(watched, root)
    assert found.has_commits == (what in ("pruned", "put back meanwhile"))
    assert head.step == 10


def test_an_attempt_is_found_in_the_trash_whatever_the_folder_is_called(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    root.commit(11)
    own = prune_dies(storage, 10)
    assert find_pruned(storage, 10, attempt_id(1001)) == f"{TRASH}/{own}"
    assert find_pruned(storage, 11, attempt_id(1001)) is None
    assert find_pruned(storage, 10, attempt_id(1002)) is None
    storage.rename(f"{TRASH}/{own}", f"{TRASH}/{pruned(10, 1, 7)}")
    assert find_pruned(storage, 10, attempt_id(1001)) == f"{TRASH}/{pruned(10, 1, 7)}"
