"""A process that may start no further thread, as under `ulimit -u` or a limit of its cgroup."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_STARTS = next(
    name for name in ("_start_joinable_thread", "_start_new_thread") if hasattr(threading, name)
)
"""What asks the system for a thread; newer releases of Python have the first."""


@contextlib.contextmanager
def no_more_threads(after: int = 0, on: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Refuse every thread within the block, as the system does.

    Args:
        after: that many may still start.
        on: whether the calling thread is one that is refused.
    """
    start, left = getattr(threading, _STARTS), [after]

    def refuse(*arguments: object, **settings: object) -> object:
        if on():
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("can't start new thread")
        return start(*arguments, **settings)

    setattr(threading, _STARTS, refuse)
    try:
        yield
    finally:
        setattr(threading, _STARTS, start)
