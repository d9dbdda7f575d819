"""Work behind the caller, on a thread that is there before it is needed.

A limit on threads may be reached at any time of a job, and a save must not fail for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from typing import TYPE_CHECKING, TypeAlias

from stepseal.process._threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    _Jobs: TypeAlias = queue.SimpleQueue[tuple[Callable[[], None], threading.Event] | None]

__all__ = ["Behind"]

_log = logging.getLogger("stepseal")
_JOIN_S = 2.0


class Behind:
    """One thread for one piece of work after the other.

    If a piece hangs, because its storage does, the next one gets a thread of its own.

    Args:
        name: of the thread.

    Raises:
        ParticipantFailed: the thread cannot be had.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._done = threading.Event()
        self._done.set()
        self._jobs, self._thread = self._begin()

    def _begin(self) -> tuple[_Jobs, threading.Thread]:
        jobs: _Jobs = queue.SimpleQueue()
        thread = threading.Thread(target=_work, args=(jobs,), name=self._name, daemon=True)
        start_thread(thread)
        weakref.finalize(self, jobs.put, None).atexit = False  # where nobody closes it
        return jobs, thread

    def start(self, work: Callable[[], None]) -> threading.Event:
        """Begin a piece of work; return what is set once it has ended.

        Raises:
            ParticipantFailed: the piece before hangs, and no further thread can be had.
        """
        if not self._done.is_set():
            hanging = self._jobs
            self._jobs, self._thread = self._begin()
            hanging.put(None)
        self._done = threading.Event()
        self._jobs.put((work, self._done))
        return self._done

    def close(self) -> None:
        """End the thread once its work has ended; wait shortly if nothing hangs. Idempotent."""
        self._jobs.put(None)
        if self._done.is_set() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        work, done = job
        try:
            work()
        except BaseException:
            _log.exception("stepseal: defect in work behind a call")
        finally:
            done.set()
            del job, work, done  # nothing of it is kept while the thread is idle
