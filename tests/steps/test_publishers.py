"""Readers learn from a name that changes that the publisher lives, and from one that stays."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import FakeIndexer, Root

from stepseal.errors import StorageUnavailable
from stepseal.process import OwnTime
from stepseal.steps._claims import claim
from stepseal.steps._owned import OwnedSteps
from stepseal.steps._publishers import BEAT_S, LOST_S, PUBLISHERS, PublisherWatch, PublishingLife
from stepseal.steps._removal import Removal
from stepseal.storage import KeyNotFound
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepseal.storage import Storage


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """A publisher and a reader that watches it, each with its own idea of time."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.number = claim(storage, None, now_s=0)
        self.clock = Clock()
        self.watch = PublisherWatch(storage, self.clock)
        self.life = PublishingLife(storage)

    def state_after(self, seconds: float) -> str:
        self.clock.now_s += seconds
        return self.watch.look()


@pytest.fixture
def watched(storage: Storage) -> Iterator[Watched]:
    Root(storage)
    found = Watched(storage)
    yield found
    found.life.close()


def test_nobody_is_known_before_the_first_publication(watched: Watched) -> None:
    assert [watched.state_after(LOST_S) for _ in range(3)] == ["unknown"] * 3


def test_a_name_that_changes_shows_a_publisher_and_one_that_stays_a_loss(watched: Watched) -> None:
    watched.life.start(watched.number)
    for _ in range(20):
        assert watched.state_after(BEAT_S) == "alive"
        assert watched.life.beat()
    assert watched.state_after(BEAT_S) == "alive"
    assert watched.state_after(LOST_S - 1) == "alive"
    assert watched.state_after(1) == "lost"
    assert watched.life.beat()  # it had only been stopped
    assert watched.state_after(1) == "alive"


def test_a_publisher_that_was_seen_to_live_has_finished_at_once(watched: Watched) -> None:
    watched.life.start(watched.number)
    assert watched.state_after(1) == "alive"
    watched.life.close()
    assert watched.state_after(1) == "finished"


def test_one_that_finished_long_ago_may_be_followed_by_another(watched: Watched) -> None:
    """Readers may start before the job does: what an earlier life left must not send them away."""
    watched.life.start(watched.number)
    watched.life.close()
    assert watched.state_after(1) == "unknown"
    assert watched.state_after(LOST_S - 2) == "unknown"
    second = claim(watched.storage, None, now_s=0)
    assert watched.state_after(LOST_S) == "unknown"
    life = PublishingLife(watched.storage)
    life.start(second)
    assert watched.state_after(1) == "alive"
    life.close()
    assert watched.state_after(1) == "finished"


def test_one_that_nobody_follows_has_finished(watched: Watched) -> None:
    watched.life.start(watched.number)
    watched.life.close()
    assert watched.state_after(1) == "unknown"
    assert watched.state_after(LOST_S) == "finished"


def test_a_newer_claim_is_a_newer_life(watched: Watched) -> None:
    """The old publisher died, or was replaced; the new one has not published yet."""
    watched.life.start(watched.number)
    assert watched.state_after(LOST_S) == "alive"
    claim(watched.storage, None, now_s=0)
    assert watched.state_after(LOST_S) == "unknown"
    assert watched.state_after(LOST_S) == "unknown"


def test_the_next_life_sweeps_what_the_last_one_left(watched: Watched) -> None:
    watched.life.start(watched.number)
    second = claim(watched.storage, None, now_s=0)
    Removal(watched.storage).sweep(second)
    assert watched.storage.list_dir(PUBLISHERS) == ()
    assert not watched.life.beat()


def test_a_refused_change_is_tried_again(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    Root(storage)
    plan = [Fault(lambda operation, _: operation == "rename", Fail(errno.EIO))]
    life = PublishingLife(FaultyStorage(storage, plan))
    life.start(1)
    assert life.beat()
    assert "may take this publisher for lost" in caplog.text
    assert life.beat()
    assert [entry.name for entry in storage.list_dir(PUBLISHERS)] == ["1.00000002.json"]
    life.close()
    assert [entry.name for entry in storage.list_dir(PUBLISHERS)] == ["1.closed.json"]


def test_a_job_that_does_not_publish_leaves_nothing() -> None:
    storage = MemoryStorage()
    owned = OwnedSteps(storage, FakeIndexer())
    owned.claim_unrestored()
    owned.begin(1, 1, "ab" * 16)
    owned.close()
    with pytest.raises(KeyNotFound):
        storage.list_dir(PUBLISHERS)


def test_one_life_has_one_name(storage: Storage) -> None:
    owned = OwnedSteps(storage, FakeIndexer())
    number = owned.claim_unrestored()
    for version in (1, 2):
        owned.begin_publication(version, number, f"{version:032x}")
    assert [entry.name for entry in storage.list_dir(PUBLISHERS)] == ["1.00000000.json"]
    owned.close()
    owned.close()
    assert [entry.name for entry in storage.list_dir(PUBLISHERS)] == ["1.closed.json"]


def test_a_second_restore_in_one_process_begins_another_life(watched: Watched) -> None:
    """Else readers saw a claim without a publisher for good, and never heard of its death."""
    watched.life.start(watched.number)
    second = claim(watched.storage, None, now_s=0)
    assert watched.state_after(1) == "unknown"
    watched.life.start(second)
    Removal(watched.storage).sweep(second)
    assert watched.state_after(1) == "alive"
    assert watched.life.beat()
    assert [entry.name for entry in watched.storage.list_dir(PUBLISHERS)] == ["2.00000001.json"]
    assert watched.state_after(LOST_S) == "alive"
    assert watched.state_after(LOST_S) == "lost"


@pytest.mark.parametrize("naive", [False, True])
def test_a_reader_that_was_suspended_does_not_take_the_publisher_for_lost(
    watched: Watched, naive: bool
) -> None:
    """Both were, with the host or the whole job: the name could not change."""
    clock = watched.clock
    own = clock if naive else OwnTime(BEAT_S, clock)
    watch = PublisherWatch(watched.storage, own)
    watched.life.start(watched.number)
    assert watch.look() == "alive"
    clock.now_s += 3600.0
    assert watch.look() == ("lost" if naive else "alive")
    watched.life.beat()
    assert watch.look() == "alive"


def test_a_publisher_that_alone_is_silent_is_lost(watched: Watched) -> None:
    clock = watched.clock
    watch = PublisherWatch(watched.storage, OwnTime(BEAT_S, clock))
    watched.life.start(watched.number)
    seen = []
    for _ in range(int(LOST_S / BEAT_S)):
        seen.append(watch.look())
        clock.now_s += BEAT_S
    assert set(seen) == {"alive"}
    assert watch.look() == "lost"


def test_a_watch_that_compares_clocks_is_caught(watched: Watched) -> None:
    """The naive one: a time in the file, against the reader's own clock, here an hour ahead."""

    def naive(written_at_s: float, reader_now_s: float) -> str:
        return "lost" if reader_now_s - written_at_s >= LOST_S else "alive"

    publisher_now_s = watched.clock.now_s - 3600
    watched.life.start(watched.number)
    assert naive(publisher_now_s, watched.clock.now_s) == "lost"
    assert watched.state_after(1) == "alive"


def test_a_life_whose_file_cannot_be_made_leaves_no_thread_and_starts_later() -> None:
    fault = Fault(lambda verb, key: verb == "create_file" and PUBLISHERS in key, Fail(errno.EIO))
    storage = FaultyStorage(MemoryStorage(), [fault])
    Root(storage)
    life = PublishingLife(storage)
    with pytest.raises(StorageUnavailable):
        life.start(1)
    assert not [one for one in threading.enumerate() if one.name == "stepseal-publisher"]
    life.start(1)
    assert life.beat()
    life.close()
