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

from stepseal.errors import CheckpointError, ParticipantFailed
from stepseal.process import start_thread, stop_unwatched

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    _InFlight: TypeAlias = Callable[[], str | None]

__all__ = ["close_at_exit", "closed"]

_log = logging.getLogger("stepseal")
_MOMENT_S = 2.0
"""How long dropping an object waits for its end, which then goes on behind."""
_EXIT_S = 10.0
"""How long the end of the process waits for saves of dropped objects."""


class _Closes(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakKeyDictionary[_Closes, tuple[weakref.finalize[..., _Closes], _InFlight]] = (
    weakref.WeakKeyDictionary()
)
_ending: dict[threading.Thread, _InFlight] = {}
_unended: list[Callable[[], None]] = []
"""What ends dropped ones that found no thread."""


def close_at_exit(
    checkpointer: _Closes, end: Callable[[], None], in_flight: Callable[[], str | None]
) -> None:
    """End `checkpointer` when it is dropped or when the interpreter ends, unless it was closed.

    Args:
        checkpointer: closed at the end of the interpreter.
        end: does what `close` does, on a thread of its own and without the object, which it must
            not refer to.
        in_flight: returns what is being written, such as `save of step 5`, or None.
    """
    finalizer = weakref.finalize(checkpointer, _dropped, os.getpid(), end, in_flight)
    finalizer.atexit = False
    _open[checkpointer] = finalizer, in_flight


def closed(checkpointer: _Closes) -> None:
    """Forget a checkpointer that was closed."""
    held = _open.pop(checkpointer, None)
    if held is not None:
        held[0].detach()


def _dropped(pid: int, end: Callable[[], None], in_flight: _InFlight) -> None:
    if os.getpid() != pid:
        return
    thread = threading.Thread(target=_end, args=(end,), name="stepseal-end", daemon=True)
    _ending[thread] = in_flight
    try:
        start_thread(thread)
    except ParticipantFailed as error:
        _log.error("stepseal: a checkpointer was dropped, and ends with the process: %s", error)
        del _ending[thread]
        _unended.append(end)
        return
    if not threading.current_thread().daemon:  # those of a job have others that wait for them
        thread.join(_MOMENT_S)
        stop_unwatched()  # what that thread cannot do


def _end(end: Callable[[], None]) -> None:
    try:
        end()
    except CheckpointError as error:
        _log.error("stepseal: a checkpointer was dropped without close(): %s", error)
    finally:
        _ending.pop(threading.current_thread(), None)


@atexit.register
def _close_all() -> None:
    for checkpointer, (_, in_flight) in list(_open.items()):
        what = in_flight()
        now = "closing it" if what is None else f"waiting for the {what}"
        _log.warning("stepseal: a checkpointer was not closed, %s. Use `with`, or close().", now)
        try:
            checkpointer.close()
        except CheckpointError as error:
            _log.error("stepseal: at exit: %s", error)
    for end in _unended:
        _end(end)
    deadline = time.monotonic() + _EXIT_S
    for thread in list(_ending):
        thread.join(max(0.0, deadline - time.monotonic()))
    for in_flight in list(_ending.values()):
        if what := in_flight():
            _log.error(
                "stepseal: a checkpointer was dropped without close(), and the %s was still going "
                "on after %g s, when the process ended: it may be missing. Use `with`, or "
                "close().",
                what,
                _EXIT_S,
            )


def _forget_all() -> None:
    _open.clear()
    _ending.clear()
    _unended.clear()


os.register_at_fork(after_in_child=_forget_all)
