"""Tells a process from a child that was forked from it: the child has no threads of its parent's.

A child holds copies of all objects, and the same connections. Whatever it sends would count as said
by its parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from stepseal.errors import InvalidInput

__all__ = ["Home", "drop_in_child"]


class _Holds(Protocol):
    def forget(self) -> None: ...


_held: weakref.WeakSet[_Holds] = weakref.WeakSet()


class Home:
    """The process that an object belongs to: the one that makes this."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self._pid

    def check(self, what: str) -> None:
        """Refuse a call in a forked child.

        Args:
            what: was called, for the message.

        Raises:
            InvalidInput: this is a forked child.
        """
        if not self.is_here:
            raise InvalidInput(
                f"{what} belongs to process {self._pid}, and process {os.getpid()} was forked from "
                "it: expected this call there. A forked child may only close it or let it be.",
                expected=self._pid,
                found=os.getpid(),
            )


def drop_in_child(holder: _Holds) -> None:
    """Call `forget` of an object in every forked child, at once: it closes descriptors alone.

    Else a connection outlives its process, and the other end takes that for alive. `forget` may
    wait for no lock: in the child, the thread that holds it does not exist.
    """
    _held.add(holder)


def _forget_all() -> None:
    for holder in list(_held):
        holder.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)
