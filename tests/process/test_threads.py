"""A limit on threads is named, and what could not begin never begins later."""

from __future__ import annotations

import errno
import gc
import threading
from typing import TYPE_CHECKING

import pytest
from tests._threads import no_more_threads

from stepseal.errors import ParticipantFailed
from stepseal.process import Behind, Pool, start_thread, thread_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 60


def named(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == name]


def ends(name: str) -> None:
    """Wait until no thread of this name is left."""
    gc.collect()
    for thread in named(name):
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_the_error_names_what_limits_threads() -> None:
    with no_more_threads(), pytest.raises(ParticipantFailed) as found:
        start_thread(threading.Thread(target=int, name="mine"))
    assert found.value.errno == errno.EAGAIN
    for text in ("thread mine: can't start new thread", "ulimit -u", "pids.max"):
        assert text in str(found.value)
    assert any(text.startswith("ulimit -u") for text in thread_limits())


def test_work_behind_needs_no_thread_once_it_is_made() -> None:
    behind = Behind("behind")
    seen: list[int] = []
    with no_more_threads():
        for number in range(3):
            assert behind.start(lambda number=number: seen.append(number)).wait(WAIT_S)  # type: ignore[misc]
    assert seen == [0, 1, 2]
    behind.close()
    ends("behind")


def fails() -> None:
    raise KeyError("missing")


def waits(event: threading.Event) -> None:
    event.wait(WAIT_S)


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """What holds a piece of work up until it is set."""
    event = threading.Event()
    yield event
    event.set()


def test_work_that_hangs_does_not_hold_up_the_next(held: threading.Event) -> None:
    behind, ran = Behind("behind"), threading.Event()
    first = behind.start(lambda: waits(held))
    assert behind.start(ran.set).wait(WAIT_S)
    assert ran.is_set()
    assert not first.is_set()
    held.set()
    behind.close()
    ends("behind")


def test_work_behind_what_hangs_is_refused_where_no_thread_can_be_had(
    held: threading.Event,
) -> None:
    behind, ran = Behind("behind"), threading.Event()
    first = behind.start(lambda: waits(held))
    with no_more_threads(), pytest.raises(ParticipantFailed):
        behind.start(ran.set)
    held.set()
    assert first.wait(WAIT_S)
    assert behind.start(lambda: None).wait(WAIT_S)
    assert not ran.is_set()
    behind.close()
    ends("behind")


def test_a_defect_of_one_piece_is_logged_and_the_next_one_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    behind = Behind("behind")
    assert behind.start(fails).wait(WAIT_S)
    assert "KeyError" in caplog.text
    assert behind.start(lambda: None).wait(WAIT_S)
    behind.close()


def test_a_thread_that_nobody_closes_ends_with_its_owner() -> None:
    Behind("behind")
    ends("behind")


def test_work_that_a_pool_refused_never_runs(held: threading.Event) -> None:
    pool, ran = Pool(4, "pool"), threading.Event()
    busy = pool.submit(held.wait, WAIT_S)
    with no_more_threads(), pytest.raises(ParticipantFailed, match="ulimit -u"):
        pool.submit(ran.set)
    held.set()
    assert busy.result(WAIT_S)
    pool.submit(int).result(WAIT_S)
    pool.shutdown()
    assert not ran.is_set()
    with pytest.raises(RuntimeError):
        pool.submit(int)


def test_a_pool_takes_work_on_the_thread_that_it_has() -> None:
    pool = Pool(4, "pool")
    with no_more_threads():
        assert pool.submit(int).result(WAIT_S) == 0
    pool.shutdown()
