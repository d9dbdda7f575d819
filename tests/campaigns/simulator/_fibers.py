"""Blocking code that stands still wherever the simulation wants, and goes on when it is told.

Exactly one piece of code runs at any time: the main loop, or the one fiber that it let go on. So a
seed alone decides what follows what, between any two storage verbs of any two processes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from greenlet import greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fiber", "Fibers", "Killed"]


class Killed(BaseException):
    """Unwinds the code of a process that was killed; nothing it still tries reaches storage."""


class Fiber:
    """One piece of blocking work of one process."""

    __slots__ = ("killed", "stack")

    def __init__(self, work: Callable[[], None]) -> None:
        self.stack = greenlet(work)
        self.killed = False

    @property
    def ended(self) -> bool:
        """True once the work returned, raised or was unwound."""
        return self.stack.dead


class Fibers:
    """Lets one fiber run at a time."""

    def __init__(self) -> None:
        self.current: Fiber | None = None
        """The one that runs now; None in the main loop."""

    def start(self, work: Callable[[], None]) -> Fiber:
        """Run `work` until it pauses for the first time or ends."""
        fiber = Fiber(work)
        self.resume(fiber)
        return fiber

    def resume(self, fiber: Fiber) -> None:
        """Let a paused fiber go on until it pauses again or ends; what it raises is raised here."""
        assert self.current is None
        assert not fiber.ended
        self.current = fiber
        try:
            with contextlib.suppress(Killed):
                fiber.stack.switch()
        finally:
            self.current = None

    def pause(self) -> None:
        """Stand still until the main loop resumes this fiber.

        Raises:
            Killed: the process was killed meanwhile.
        """
        fiber = self.current
        assert fiber is not None
        assert fiber.stack.parent is not None
        fiber.stack.parent.switch()
        if fiber.killed:
            raise Killed

    def kill(self, fiber: Fiber) -> None:
        """Unwind a fiber that stands still."""
        if not fiber.ended:
            fiber.killed = True
            self.resume(fiber)
