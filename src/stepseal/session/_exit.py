"""What becomes of a checkpointer that nobody closes: it ends by itself, dropped or at exit.

Invariants: the save in flight still ends, or the log says that it did not; nothing is waited for
longer than a moment where an object is dropped, which may happen at any instruction of any thread;
a forked child, which shares neither threads nor lines with its parent, ends nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import CheckpointError
from stepseal.session._signals import stop_unwatched

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["close_at_exit", "closed"]

_log = logging.getLogger("stepseal")
_MOMENT_S = 2.0
"""How long dropping an object waits for its end, which then goes on behind."""
_EXIT_S = 10.0
"""How long the end of the process waits for saves of dropped objects."""


class _Closes(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakKeyDictionary[_Closes, weakref.finalize[[int, Callable[[], None]], _Closes]] = (
    weakref.WeakKeyDictionary()
)
_ending: set[threading.Thread] = set()


def close_at_exit(checkpointer: _Closes, end: Callable[[], None]) -> None:
    """End `checkpointer` when it is dropped or when the interpreter ends, unless it was closed.

    Args:
        checkpointer: closed at the end of the interpreter.
        end: does what `close` does, on a thread of its own and without the object, which it must
            not refer to.
    """
    finalizer = weakref.finalize(checkpointer, _dropped, os.getpid(), end)
    finalizer.atexit = False
    _open[checkpointer] = finalizer


def closed(checkpointer: _Closes) -> None:
    """Forget a checkpointer that was closed."""
    finalizer = _open.pop(checkpointer, None)
    if finalizer is not None:
        finalizer.detach()


def _dropped(pid: int, end: Callable[[], None]) -> None:
    if os.getpid() != pid:
        return
    thread = threading.Thread(target=_end, args=(end,), name="stepseal-end", daemon=True)
    _ending.add(thread)
    thread.start()
    if not threading.current_thread().daemon:  # those of a job have others that wait for them
        thread.join(_MOMENT_S)
        stop_unwatched()  # what that thread cannot do


def _end(end: Callable[[], None]) -> None:
    try:
        end()
    except CheckpointError as error:
        _log.error("stepseal: a checkpointer was dropped without close(): %s", error)
    finally:
        _ending.discard(threading.current_thread())


@atexit.register
def _close_all() -> None:
    for checkpointer in list(_open):
        _log.warning("stepseal: a checkpointer was not closed: waiting for its save in flight")
        try:
            checkpointer.close()
        except CheckpointError as error:
            _log.error("stepseal: at exit: %s", error)
    deadline = time.monotonic() + _EXIT_S
    for thread in list(_ending):
        thread.join(max(0.0, deadline - time.monotonic()))
    if _ending:
        _log.error(
            "stepseal: a checkpointer was dropped without close(), and its save was still being "
            "written after %g s, when the process ended: it may be missing. Use `with`, or "
            "close().",
            _EXIT_S,
        )


def _forget_all() -> None:
    _open.clear()
    _ending.clear()


os.register_at_fork(after_in_child=_forget_all)
