"""Blocking code that stands still wherever the simulation wants: real threads that hand a baton.

Exactly one thread runs at any time: the main loop, or the one fiber that it let go on. So a seed
alone decides what follows what, between any two storage verbs of any two processes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fiber", "Fibers", "Killed"]


class Killed(BaseException):
    """Unwinds the code of a process that was killed; nothing it still tries reaches storage."""


class _Carrier:
    """A thread that carries one fiber after another."""

    def __init__(self, back: threading.Lock) -> None:
        self._back = back
        self._go = threading.Lock()
        self._go.acquire()
        self.work: Callable[[], None] | None = None
        self.error: BaseException | None = None
        threading.Thread(target=self._run, name="fiber", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            assert self.work is not None
            try:
                self.work()
            except Killed:
                pass
            except BaseException as error:  # handed to the main loop, which raises it
                self.error = error
            self.work = None
            self._back.release()

    def let_go_on(self) -> None:
        """Run until the work pauses or ends; called by the main loop."""
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Hand the baton back; called by the work itself."""
        self._back.release()
        self._go.acquire()


class Fiber:
    """One piece of blocking work of one process."""

    __slots__ = ("carrier", "killed")

    def __init__(self, carrier: _Carrier) -> None:
        self.carrier: _Carrier | None = carrier
        self.killed = False

    @property
    def ended(self) -> bool:
        """True once the work returned, raised or was unwound."""
        return self.carrier is None


class Fibers:
    """All fibers of this process; carriers are kept for the next work."""

    def __init__(self) -> None:
        self._back = threading.Lock()
        self._back.acquire()
        self._idle: list[_Carrier] = []
        self.current: Fiber | None = None
        """The one that runs now; None in the main loop."""

    def start(self, work: Callable[[], None]) -> Fiber:
        """Run `work` until it pauses for the first time or ends."""
        carrier = self._idle.pop() if self._idle else _Carrier(self._back)
        carrier.work = work
        fiber = Fiber(carrier)
        self.resume(fiber)
        return fiber

    def resume(self, fiber: Fiber) -> None:
        """Let a paused fiber go on until it pauses again or ends."""
        assert self.current is None
        carrier = fiber.carrier
        assert carrier is not None
        self.current = fiber
        try:
            carrier.let_go_on()
        finally:
            self.current = None
            if carrier.work is None:
                fiber.carrier = None
                self._idle.append(carrier)

    def pause(self) -> None:
        """Stand still until the main loop resumes this fiber.

        Raises:
            Killed: the process was killed meanwhile.
        """
        fiber = self.current
        assert fiber is not None
        assert fiber.carrier is not None
        fiber.carrier.wait()
        if fiber.killed:
            raise Killed

    def kill(self, fiber: Fiber) -> None:
        """Unwind a fiber that stands still."""
        if not fiber.ended:
            fiber.killed = True
            self.resume(fiber)
