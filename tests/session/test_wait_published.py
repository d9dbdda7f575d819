"""Readers wait for a version, get it whole, keep it while they read, or hear why none comes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import pytest
from tests.retention._kit import inspect_with
from tests.session.test_publishing import filled, job, publish
from tests.steps._kit import FakeIndexer, Root, overwrite
from tests.steps.test_publishers import Clock

import stepseal as ss
from stepseal import errors
from stepseal.layout import MANIFEST, Area
from stepseal.retention._publications import prune_published
from stepseal.session import _run
from stepseal.session._waiting import PublishedWait
from stepseal.steps import PosixSteps, PublisherWatch, Removal
from stepseal.steps._claims import claim
from stepseal.steps._publishers import LOST_S, PublishingLife
from stepseal.storage import LocalStorage
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from stepseal.layout import Manifest
    from stepseal.storage import Storage


class Waiting:
    """A root with a publisher, and a reader whose clock the test moves."""

    def __init__(self, storage: Storage) -> None:
        self.root = Root(storage)
        self.root.claim()
        self.storage = storage
        self.life = PublishingLife(storage)
        self.clock = Clock()
        self.watch = PublisherWatch(storage, self.clock)

    def wait(self, min_version: int, timeout_s: float = 1e6) -> PublishedWait:
        steps = PosixSteps(self.storage)
        return PublishedWait(
            steps, self.root.run_id, self.watch, min_version, timeout_s, self.clock
        )

    def publish(self, version: int) -> None:
        self.life.start(self.root.number)
        self.root.publish_version(version)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    found = Waiting(MemoryStorage())
    yield found
    found.life.close()


def test_a_reader_wakes_when_the_version_is_committed(waiting: Waiting) -> None:
    wait = waiting.wait(7)
    assert wait.look() is None
    waiting.publish(6)
    assert wait.look() is None
    waiting.publish(7)
    waiting.publish(8)
    found = wait.look()
    assert found is not None
    assert found.key == "published/v-8"  # the newest that will do


def test_what_is_not_committed_wakes_nobody(waiting: Waiting) -> None:
    """Staging, a folder without a manifest, a name alone, a step and a damaged manifest."""
    wait = waiting.wait(7)
    waiting.publish(6)
    waiting.root.prepare(7, Area.PUBLISHED)
    waiting.storage.make_dir("published/v-7")
    waiting.storage.make_dir("published/v-8")
    waiting.storage.make_dir("published/v-8/parts")
    waiting.root.commit(9)
    assert wait.look() is None
    waiting.publish(10)
    overwrite(waiting.storage, f"published/v-10/{MANIFEST}", b"{}")
    assert wait.look() is None
    waiting.clock.now_s += 2e6
    waiting.life.beat()
    with pytest.raises(errors.WaitTimeout, match=r"v-8 is damaged.*v-10 is damaged") as caught:
        wait.look()
    assert len(caught.value.problems) == 3


def naive_by_name(storage: Storage, min_version: int) -> bool:
    return any(int(entry.name[2:]) >= min_version for entry in storage.list_dir("published"))


def test_a_reader_that_takes_a_folder_without_a_manifest_is_caught(waiting: Waiting) -> None:
    waiting.publish(6)
    waiting.storage.make_dir("published/v-7")
    assert naive_by_name(waiting.storage, 7)
    assert waiting.wait(7).look() is None


def test_a_pointer_is_no_publication(waiting: Waiting) -> None:
    """The naive publisher moves a pointer before the data; whoever follows it finds nothing."""
    waiting.publish(6)
    for name in ("latest", "published/latest"):
        with waiting.storage.create_file(name) as handle:
            handle.write(b"v-7\n", 0)
    assert waiting.wait(7).look() is None


def test_after_the_time_it_says_what_the_newest_is(waiting: Waiting) -> None:
    with pytest.raises(errors.WaitTimeout, match="found none at all") as caught:
        waiting.wait(0, timeout_s=0).look()
    assert caught.value.found is None
    waiting.publish(6)
    wait = waiting.wait(9, timeout_s=30)
    assert wait.look() is None
    waiting.clock.now_s += 30
    with pytest.raises(errors.WaitTimeout, match=r"version 9 .*found published/v-6 as") as caught:
        wait.look()
    assert (caught.value.expected, caught.value.found) == (">= 9", 6)
    assert isinstance(caught.value, TimeoutError)


def test_what_was_committed_in_time_is_taken_after_the_time(waiting: Waiting) -> None:
    wait = waiting.wait(1, timeout_s=30)
    assert wait.look() is None
    waiting.publish(1)
    waiting.clock.now_s += 1e6
    assert wait.look() is not None


def test_a_waiting_reader_hears_of_the_death_of_the_writer(waiting: Waiting) -> None:
    waiting.publish(6)
    wait = waiting.wait(7)
    assert wait.look() is None
    waiting.clock.now_s += LOST_S
    with pytest.raises(errors.CoordinatorLost, match=r"no sign of life.*Restart") as caught:
        wait.look()
    assert caught.value.found == 6


def test_a_slow_publisher_that_lives_is_waited_for(waiting: Waiting) -> None:
    waiting.publish(6)
    wait = waiting.wait(7)
    for _ in range(20):
        assert wait.look() is None
        waiting.clock.now_s += LOST_S - 1
        waiting.life.beat()
    waiting.publish(7)
    assert wait.look() is not None


def test_a_finished_publisher_is_told_from_a_dead_one(waiting: Waiting) -> None:
    waiting.publish(6)
    wait = waiting.wait(7)
    assert wait.look() is None
    waiting.life.close()
    with pytest.raises(errors.StepNotFound, match=r"v-6 as the newest.*has finished"):
        wait.look()


def test_the_last_thing_that_a_publisher_did_counts(waiting: Waiting) -> None:
    """Between the two looks of a reader the publisher publishes, and ends."""
    waiting.publish(6)

    class Watch(PublisherWatch):
        def look(self) -> Literal["unknown", "alive", "finished", "lost"]:
            waiting.publish(7)
            waiting.life.close()
            return "finished"

    steps = PosixSteps(waiting.storage)
    watch = Watch(waiting.storage, waiting.clock)
    wait = PublishedWait(steps, waiting.root.run_id, watch, 7, 10.0, waiting.clock)
    found = wait.look()
    assert found is not None
    assert found.step == 7


def test_a_restart_of_the_publisher_is_waited_for(waiting: Waiting) -> None:
    waiting.publish(6)
    wait = waiting.wait(7)
    assert wait.look() is None
    waiting.clock.now_s += LOST_S - 1
    claim(waiting.storage, None, now_s=0)
    for _ in range(3):
        waiting.clock.now_s += LOST_S
        assert wait.look() is None


def test_looks_come_at_growing_intervals_and_end_with_the_time(waiting: Waiting) -> None:
    wait = waiting.wait(7, timeout_s=20)
    pauses = []
    while (pause_s := wait.pause_s()) > 0:
        pauses.append(pause_s)
        waiting.clock.now_s += pause_s
    assert pauses[0] == pytest.approx(0.05)
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) == 2.0
    assert sum(pauses) == pytest.approx(20)


@pytest.mark.parametrize("timeout_s", [-1, "10", True, None])
def test_a_time_is_a_number_of_seconds(waiting: Waiting, timeout_s: float) -> None:
    with pytest.raises(errors.InvalidInput, match="timeout_s"):
        waiting.wait(1, timeout_s)
    with pytest.raises(errors.InvalidInput, match="min_version is not usable"):
        waiting.wait(-1)


def prune(root: Path, keep: int = 1) -> None:
    storage = LocalStorage.open(root)
    removal, run = Removal(storage), ss.open(root)
    number = len(list((root / ".stepseal/incarnations").iterdir()))
    prune_published(removal, run.run_id, number, keep, inspect=inspect_with(storage, Whole()))


class Whole(FakeIndexer):
    """Takes every folder for whole: the readers of these tests check it themselves."""

    def inspect(
        self, storage: Storage, key: str, manifest: Manifest, *, exact: bool
    ) -> Sequence[str]:
        del storage, key, manifest, exact
        return []


def test_a_leased_publication_is_not_pruned_while_it_is_read(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2)
    with ss.open(tmp_path).wait_published(2, timeout_s=30) as held:
        publish(tmp_path, 3, 4)
        prune(tmp_path)
        assert ss.open(tmp_path).published() == (2, 4)
        assert held.tensors("bias")["bias"].tolist() == [2.0, 2.0]
        assert held.verify() == ()
    gone = ss.open(tmp_path).publication(2)
    prune(tmp_path)
    assert ss.open(tmp_path).published() == (4,)
    with pytest.raises(errors.StepNotFound, match=r"version 2: .*published/v-2"), gone:
        raise AssertionError("never entered")


def test_a_block_takes_the_newest_if_what_was_awaited_is_pruned_by_then(tmp_path: Path) -> None:
    """A slow reader must not be sent away because the job is fast."""
    publish(tmp_path, 1, 2)
    awaited = ss.open(tmp_path).wait_published(2, timeout_s=30)
    publish(tmp_path, 3)
    prune(tmp_path)
    with awaited as held:
        assert (held.version, held.verify()) == (3, ())
        publish(tmp_path, 4, 5)
        prune(tmp_path)
        assert ss.open(tmp_path).published() == (3, 5)
        held.tick()
    prune(tmp_path)
    assert ss.open(tmp_path).published() == (5,)


def test_both_twins_return_what_is_there(tmp_path: Path) -> None:
    publish(tmp_path, 3)
    run = ss.open(tmp_path)
    for found in (
        run.wait_published(2, timeout_s=0),
        asyncio.run(run.wait_published_async(2, timeout_s=0)),
    ):
        assert found.version == 3
    with pytest.raises(errors.WaitTimeout):
        run.wait_published(4, timeout_s=0)
    with pytest.raises(errors.WaitTimeout):
        asyncio.run(run.wait_published_async(4, timeout_s=0))


def test_a_reader_on_another_thread_wakes_after_the_commit(tmp_path: Path) -> None:
    with job(tmp_path, filled(1)) as ckpt:
        ckpt.publish(1, components=["model"]).wait()
        found: list[ss.Publication] = []
        run = ss.open(tmp_path)
        looked = threading.Event()
        looking = run._steps.versions

        def versions() -> tuple[int, ...]:
            looked.set()
            return looking()

        run._steps.versions = versions  # type: ignore[method-assign]
        reader = threading.Thread(target=lambda: found.append(run.wait_published(2, 1e3)))
        reader.start()
        assert looked.wait(60)
        ckpt.publish(2, components=["model"])
        reader.join(60)
    assert [one.version for one in found] == [2]
    assert found[0].verify() == ()


def test_an_event_loop_goes_on_while_a_reader_waits(tmp_path: Path) -> None:
    publish(tmp_path, 1)

    async def life() -> int:
        run = ss.open(tmp_path)
        waits = asyncio.ensure_future(run.wait_published_async(2, 1e3))
        await asyncio.sleep(0)
        await asyncio.to_thread(publish, tmp_path, 2)
        return (await waits).version

    assert asyncio.run(life()) == 2


PUBLISHER = """
import sys, torch, stepseal as ss
with ss.Checkpointer(sys.argv[1]) as ckpt:
    ckpt.add("model", torch.nn.Linear(3, 2))
    ckpt.publish(1, components=["model"]).wait()
    print("published", flush=True)
    if sys.stdin.readline().strip() == "finish":
        sys.exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "finished"])
def test_a_publisher_that_is_killed_is_told_from_one_that_ends(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now_s += seconds

    monkeypatch.setattr(_run, "time", SimpleNamespace(sleep=sleep))
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdin is not None
        assert publisher.stdout.readline() == "published\n"
        run = ss.open(tmp_path)
        run._watch = PublisherWatch(run._steps.storage, clock)
        assert run._watch.look() == "alive"
        if end == "killed":
            publisher.send_signal(signal.SIGKILL)
        else:
            publisher.stdin.write("finish\n")
            publisher.stdin.flush()
        publisher.wait(60)
        expected: type[Exception] = (
            errors.CoordinatorLost if end == "killed" else errors.StepNotFound
        )
        with pytest.raises(expected):
            run.wait_published(2, timeout_s=1e6)
    assert run.wait_published(1, timeout_s=0).verify() == ()
