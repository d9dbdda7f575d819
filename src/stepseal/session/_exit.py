"""A process that ends without closing its checkpointer still finishes the save in flight."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from typing import Protocol

from stepseal.errors import CheckpointError

__all__ = ["close_at_exit", "closed"]

_log = logging.getLogger("stepseal")


class _Closes(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closes] = weakref.WeakSet()


def close_at_exit(checkpointer: _Closes) -> None:
    """Close `checkpointer` when the interpreter ends, unless it was closed or dropped before."""
    _open.add(checkpointer)


def closed(checkpointer: _Closes) -> None:
    """Forget a checkpointer that was closed."""
    _open.discard(checkpointer)


@atexit.register
def _close_all() -> None:
    for checkpointer in list(_open):
        _log.warning("stepseal: a checkpointer was not closed: waiting for its save in flight")
        try:
            checkpointer.close()
        except CheckpointError as error:
            _log.error("stepseal: at exit: %s", error)


# A forked child shares neither threads nor lines with its parent: there is nothing to close.
os.register_at_fork(after_in_child=_open.clear)
