"""Signals of this process, for whoever watches them: noticed also while the main thread is busy.

Python runs its handlers on the main thread, between two bytecodes: not while that thread is inside
a collective. But the C handler at once writes the signal's number to a descriptor
(`signal.set_wakeup_fd`), and a thread of ours reads it. An owner that the descriptor had before,
such as an event loop, gets each number as well, and a handler that was there is called.

Invariants: without watchers nothing is installed; a forked child watches nothing, and never writes
to its parent's descriptor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from stepseal.errors import InvalidInput, ParticipantFailed
from stepseal.process._threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    _Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

__all__ = ["SignalWatch", "check_can_watch", "stop_unwatched", "wait_until_noticed", "watch_signal"]

_log = logging.getLogger("stepseal")
_JOIN_S = 2.0
_NOTICE_S = 2.0
_NAP_S = 0.001
_BY_HANDLER = 0x80
"""Marks a number that our handler wrote, because the descriptor was somebody else's."""


class SignalWatch:
    """One watcher of one signal, until `end`.

    Args:
        signum: the signal.
        notice: called on the thread of this module, once per signal.
    """

    def __init__(self, signum: signal.Signals, notice: Callable[[], None]) -> None:
        self.signum = signum
        self.notice = notice

    def end(self) -> None:
        """Watch no more. Idempotent."""
        _process.remove(self)


class _Process:
    """What is installed in this process."""

    def __init__(self) -> None:
        self._watchers: dict[signal.Signals, list[SignalWatch]] = {}
        self._before: dict[signal.Signals, _Handler] = {}
        """Signal to the handler that was there before ours."""
        self._ours: int | None = None
        """Descriptor that the C handler writes to: one end of a pipe."""
        self._read: int | None = None
        self._thread: threading.Thread | None = None
        self._is_busy = False
        """Our thread has taken a number, and watchers do not know of it yet."""
        self._other = -1
        """Descriptor of the owner before us; -1 if there was none."""
        self._lock = threading.Lock()
        self._masks = threading.local()

    def add(self, watch: SignalWatch) -> None:
        with self._lock:
            if self._ours is None:
                self._start()
            if watch.signum not in self._before:
                self._before[watch.signum] = signal.signal(watch.signum, self._handle)
            self._watchers[watch.signum] = [*self._watchers.get(watch.signum, ()), watch]

    def remove(self, watch: SignalWatch) -> None:
        with self._lock:
            found = [one for one in self._watchers.get(watch.signum, ()) if one is not watch]
            self._watchers[watch.signum] = found
        self.stop_unwatched()

    def stop_unwatched(self) -> None:
        """Put back what was there before, if nobody watches and this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        with self._lock:
            ended = None
            if self._ours is not None and not any(self._watchers.values()):
                ended = self._stop()
        if ended is not None:
            ended.join(_JOIN_S)

    def _start(self) -> None:
        self._read, self._ours = os.pipe()
        os.set_blocking(self._ours, False)
        self._thread = threading.Thread(
            target=self._run, args=(self._read,), name="stepseal-signals", daemon=True
        )
        try:
            start_thread(self._thread)
        except ParticipantFailed:
            os.close(self._read)
            os.close(self._ours)
            self._read = self._ours = self._thread = None
            raise
        self._other = signal.set_wakeup_fd(self._ours, warn_on_full_buffer=False)

    def _stop(self) -> threading.Thread | None:
        """Put back what was there before us, as far as it is still ours; return our thread."""
        assert self._ours is not None
        for signum, handler in self._before.items():
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, handler)
        found = signal.set_wakeup_fd(-1)
        if found == self._ours:
            found = self._other
        with contextlib.suppress(OSError, ValueError):  # that owner has closed it
            signal.set_wakeup_fd(found, warn_on_full_buffer=False)
        os.close(self._ours)  # ends the thread
        thread, self._thread = self._thread, None
        self._before, self._ours, self._read, self._other = {}, None, None, -1
        return thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal on the main thread."""
        signum = signal.Signals(number)
        watchers = self._watchers.get(signum, ())
        self._take_back(number)
        handler = self._before.get(signum)
        if not watchers and handler is signal.SIG_DFL:  # they ended on another thread
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif handler is signal.default_int_handler and watchers:
            signal.signal(signum, signal.default_int_handler)  # the second one interrupts
        elif callable(handler):
            handler(number, frame)

    def _take_back(self, number: int) -> None:
        """Own the descriptor again; if somebody else did, tell our thread of this signal."""
        if self._ours is None:
            return
        found = signal.set_wakeup_fd(self._ours, warn_on_full_buffer=False)
        if found != self._ours:
            self._other = found
            with contextlib.suppress(BlockingIOError):
                os.write(self._ours, bytes([number | _BY_HANDLER]))

    def _run(self, read: int) -> None:
        while _is_readable(read, None):
            self._is_busy = True  # before the number is gone, so that it is always seen
            numbers = os.read(read, 256)
            for byte in numbers:
                self._notice(byte)
            self._is_busy = False
            if not numbers:  # the other end was closed
                break
        os.close(read)

    def wait_until_noticed(self) -> None:
        """Wait until what the C handler has written by now was noticed."""
        end = time.monotonic() + _NOTICE_S
        while self._read is not None and time.monotonic() < end:
            if not self._is_busy and not _is_readable(self._read, 0.0):
                return
            time.sleep(_NAP_S)

    def _notice(self, byte: int) -> None:
        if not byte & _BY_HANDLER and self._other != -1:
            with contextlib.suppress(OSError):  # it was closed without a word
                os.write(self._other, bytes([byte]))
        for watch in self._watchers.get(signal.Signals(byte & ~_BY_HANDLER), ()):
            try:
                watch.notice()
            except Exception:
                _log.exception("stepseal: could not tell of %s", watch.signum.name)

    def before_fork(self) -> None:
        """Hold signals back, so that none reaches a child before it has undone all."""
        watched = self._before.keys()
        self._masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, watched) if watched else None

    def after_fork(self) -> None:
        """Let what came meanwhile through, in the parent and in the child."""
        if self._masks.old is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.old)

    def forked(self) -> None:
        """Undo all in a forked child, which shares the parent's descriptor."""
        if self._ours is None or self._read is None:
            return
        signal.set_wakeup_fd(-1)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.close(self._ours)
        os.close(self._read)
        self._ours = self._read = None


def _is_readable(descriptor: int, timeout_s: float | None) -> bool:
    """Return whether there is something to read, or the other end was closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


_process = _Process()


def watch_signal(signum: signal.Signals, notice: Callable[[], None]) -> SignalWatch:
    """Begin to watch a signal; call it on the main thread.

    Args:
        signum: the signal.
        notice: see `SignalWatch`.

    Raises:
        InvalidInput: this is not the main thread.
        ParticipantFailed: the thread that watches cannot be had.
    """
    check_can_watch([signum])
    watch = SignalWatch(signum, notice)
    _process.add(watch)
    return watch


def stop_unwatched() -> None:
    """Put back what was there before, if watchers have ended on other threads; on the main one."""
    _process.stop_unwatched()


def wait_until_noticed() -> None:
    """Wait until watchers know of every signal that this process has received by now."""
    _process.wait_until_noticed()


def check_can_watch(signums: Sequence[signal.Signals]) -> None:
    """Refuse to watch signals where Python installs no handlers.

    Raises:
        InvalidInput: this is not the main thread.
    """
    if signums and threading.current_thread() is not threading.main_thread():
        raise InvalidInput(
            f"on_signal({signums[0].name!r}): Python handles signals on the main thread alone, and "
            "this is another one. Make the Checkpointer there, or leave the trigger out.",
            found=threading.current_thread().name,
        )


def _forget_in_child() -> None:
    global _process
    parent, _process = _process, _Process()
    parent.forked()
    parent.after_fork()


os.register_at_fork(
    before=lambda: _process.before_fork(),
    after_in_parent=lambda: _process.after_fork(),
    after_in_child=_forget_in_child,
)
