from __future__ import annotations

import errno
import re
import time
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, attempt_id, damage, exists

from stepseal.errors import StorageUnavailable
from stepseal.steps._attempts import attempt_at, begin, discard, put_aside, sweep, to_trash
from stepseal.steps._roots import STAGING, SUPERSEDED, TRASH
from stepseal.storage import KeyNotFound, make_dirs, read_bytes
from stepseal.testing import Fail, Fault, FaultyStorage, Lose, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage


def crashed_exchange(root: Root, step: int) -> str:
    """Leave a root as a death right between exchange and putting aside does; return staging."""
    staging, manifest = root.prepare(step)
    faulty = FaultyStorage(
        root.storage,
        [Fault(lambda verb, key: verb == "rename" and SUPERSEDED in key, Fail(errno.EIO))],
    )
    root.storage, inner = faulty, root.storage
    root.publish(staging, manifest)
    root.storage = inner
    return staging


def outside(storage: Storage) -> Root:
    """Return a root with a committed step 20 that is outside the lineage of a new claim."""
    root = Root(storage)
    head = root.commit(10)
    root.commit(20)
    root.claim(head)
    return root


def test_begin_makes_a_folder_with_its_nonce(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    staging = begin(storage, 10, 1, attempt_id(1))
    assert staging.key == f"{STAGING}/step-10.1.{attempt_id(1)}"
    text = read_bytes(storage, f"{staging.key}/.nonce", 300).decode()
    assert text.partition(" ")[0] == staging.nonce
    with pytest.raises(StorageUnavailable):
        begin(storage, 10, 1, attempt_id(1))


@pytest.mark.parametrize("verb", ["make_dir", "sync_dir", "create_file", "write", "sync"])
def test_a_folder_whose_begin_fails_does_not_stay(storage: Storage, verb: str) -> None:
    root = Root(storage)
    root.claim()
    full = FaultyStorage(storage, [Fault(lambda v, _: v == verb, Lose(errno.ENOSPC))])
    with pytest.raises(StorageUnavailable) as caught:
        begin(full, 10, 1, attempt_id(1))
    assert caught.value.errno == errno.ENOSPC
    assert root.names(STAGING) == root.names(TRASH) == []


def test_a_begin_that_cannot_discard_tells_its_first_refusal(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    plan = [
        Fault(lambda verb, _: verb == "write", Fail(errno.ENOSPC)),
        Fault(lambda verb, _: verb == "rename", Fail(errno.EIO)),
    ]
    with pytest.raises(StorageUnavailable) as caught:
        begin(FaultyStorage(storage, plan), 10, 1, attempt_id(1))
    assert caught.value.errno == errno.ENOSPC
    assert sweep(storage, 2) == (f"step-10.1.{attempt_id(1)}",)


def test_discard_removes_all_and_is_idempotent(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    staging, _ = root.prepare(10)
    discard(storage, staging)
    discard(storage, staging)
    assert root.names(STAGING) == root.names(TRASH) == root.names(SUPERSEDED) == []


def test_discard_first_takes_the_folder_out_of_reach(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    staging, _ = root.prepare(10)
    stuck = FaultyStorage(
        storage, [Fault(lambda verb, _: verb == "remove_file", Fail(errno.EIO), sticky=True)]
    )
    with pytest.raises(StorageUnavailable):
        discard(stuck, staging)
    assert root.names(STAGING) == []
    assert len(root.names(TRASH)) == 1
    sweep(storage, 1)  # of the same incarnation: the trash is its own
    assert root.names(TRASH) == []


def test_to_trash_of_nothing(storage: Storage) -> None:
    Root(storage)
    with pytest.raises(KeyNotFound):
        to_trash(storage, f"{STAGING}/step-1.1.{attempt_id(1)}")


def test_attempt_at(storage: Storage) -> None:
    root = Root(storage)
    root.commit(5)
    assert attempt_at(storage, "step-5") == attempt_id(1001)
    damage(storage, 5)
    assert attempt_at(storage, "step-5") is None
    assert attempt_at(storage, "step-6") is None


def test_sweep_removes_what_older_incarnations_left(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    old, _ = root.prepare(10)
    root.claim()
    own, _ = root.prepare(10)
    root.claim()
    newer, _ = root.prepare(10)
    assert sweep(storage, 2) == (old.rpartition("/")[2],)
    assert not exists(storage, old)
    assert exists(storage, own)
    assert exists(storage, newer)


def test_sweep_leaves_names_that_are_not_ours(storage: Storage) -> None:
    root = Root(storage)
    names = ["notes", "step-1", "step-1.1", "step-01.1." + "a" * 32, "step-1.1.xyz", ".tmp-12"]
    names += ["step-1.0." + "a" * 32, "step-1.1." + "A" * 32, "step-1.1." + "a" * 32 + ".old"]
    for name in names:
        make_dirs(storage, f"{STAGING}/{name}")
        make_dirs(storage, f"{TRASH}/{name}")
    with storage.create_file(f"{STAGING}/step-1.1.{'b' * 32}") as handle:
        handle.write(b"a file", 0)
    assert sweep(storage, 9) == ()
    assert root.names(TRASH) == sorted(names)
    assert len(root.names(STAGING)) == len(names) + 1


def test_sweep_goes_on_past_what_cannot_be_removed(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    first, _ = root.prepare(10)
    second, _ = root.prepare(20)
    root.claim()
    plan = [Fault(lambda verb, key: verb == "rename" and first in key, Fail(errno.EACCES))]
    with pytest.raises(StorageUnavailable):
        sweep(FaultyStorage(storage, plan), 2)
    assert exists(storage, first)
    assert not exists(storage, second)


def test_sweep_empties_the_trash_and_goes_on_past_failures(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    kept, removed = (to_trash(storage, root.prepare(step)[0]) for step in (10, 20))
    newer = f"{TRASH}/step-5.9.{attempt_id(5)}.{'0' * 8}"
    make_dirs(storage, newer)
    plan = [Fault(lambda verb, key: verb == "remove_file" and kept in key, Fail(errno.EIO))]
    with pytest.raises(StorageUnavailable):
        sweep(FaultyStorage(storage, plan), 1)
    assert exists(storage, kept)
    assert not exists(storage, removed)
    assert exists(storage, newer)


def test_trash_that_somebody_else_empties_is_no_failure() -> None:
    storage = MemoryStorage()
    root = Root(storage)
    root.claim()
    trash = to_trash(storage, root.prepare(10)[0])

    class Helped(FaultyStorage):
        def list_dir(self, key: str):  # type: ignore[no-untyped-def] # noqa: ANN202
            found = super().list_dir(key)
            if key == TRASH:
                discard_all(storage, trash)
            return found

    assert sweep(Helped(storage), 1) == ()


def discard_all(storage: Storage, key: str) -> None:
    from stepseal.storage import remove_tree

    if exists(storage, key):
        remove_tree(storage, key)


@pytest.mark.parametrize("damaged", [False, True])
def test_sweep_keeps_what_a_commit_put_out_of_place(storage: Storage, damaged: bool) -> None:
    root = outside(storage)
    if damaged:
        damage(storage, 20)
    superseded = attempt_at(storage, "step-20")
    staging = crashed_exchange(root, 20)
    assert attempt_at(storage, staging) == superseded
    root.claim(root.head)
    assert sweep(storage, root.number) == (staging.rpartition("/")[2],)
    assert root.names(STAGING) == root.names(TRASH) == []
    (kept,) = root.names(SUPERSEDED)
    assert attempt_at(storage, f"{SUPERSEDED}/{kept}") == superseded
    assert exists(storage, f"{SUPERSEDED}/{kept}/parts")


def test_sweep_keeps_it_even_if_the_step_was_superseded_again(storage: Storage) -> None:
    root = outside(storage)
    staging = crashed_exchange(root, 20)
    first = attempt_at(storage, staging)
    second = attempt_at(storage, "step-20")
    root.claim(root.head)  # from step 10 again: what was just committed is outside, too
    root.commit(20)
    sweep(storage, root.number)
    kept = {attempt_at(storage, f"{SUPERSEDED}/{name}") for name in root.names(SUPERSEDED)}
    assert kept == {first, second}


def test_sweep_removes_an_attempt_that_died_right_before_its_commit(storage: Storage) -> None:
    root = outside(storage)
    staging, manifest = root.prepare(30)
    plan = [Fault(lambda verb, _: verb == "rename", Fail(errno.ENOSPC))]
    root.storage = FaultyStorage(storage, plan)
    with pytest.raises(StorageUnavailable):
        root.publish(staging, manifest)
    root.storage = storage
    assert attempt_at(storage, staging) == manifest.attempt
    root.claim(root.head)
    sweep(storage, root.number)
    assert root.names(STAGING) == root.names(TRASH) == root.names(SUPERSEDED) == []


def test_put_aside_keeps_the_name_and_adds_the_time(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    staging, _ = root.prepare(10)
    put_aside(storage, staging)
    (name,) = root.names(SUPERSEDED)
    assert re.fullmatch(re.escape(staging.rpartition("/")[2]) + r"\.[0-9a-f]{16}", name)
    assert abs(int(name.rpartition(".")[2][:8], 16) - time.time()) < 60
