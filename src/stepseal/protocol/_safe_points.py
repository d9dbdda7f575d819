"""Safe points of ranks that nobody can call: the messages, and a rank's own side; no I/O.

A rank passes a *safe point* each time that its loop says that nothing changes state. All ranks of a
role pass the same ones, and number them equally. The coordinator asks each for the number of the
last one that it has passed, and names the target: the largest number + 1. Invariant: between its
answer and the target a rank passes no safe point, so that nobody is beyond the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from stepseal.protocol._triggers import Due  # noqa: TC001 - msgspec reads it

__all__ = ["AskSafePoint", "Lapsed", "OwnPoints", "SafePoint", "Target", "ToRank"]

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class AskSafePoint(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Which safe point did you pass last? Wait at the next one until you are told the target."""

    request: _Number


class SafePoint(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Answers `AskSafePoint`; sent once more when the rank is at the target."""

    request: _Number
    point: _Number
    """Number of the last safe point that the rank has passed, or of the target where it is."""


class Target(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """All have answered: pass every safe point before this one, and stop there."""

    request: _Number
    point: _Number
    due: Due | None = None
    """What all ranks do there; None where a call begins."""


class Lapsed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The request came to nothing: go on as if nobody had asked."""

    request: _Number


ToRank = AskSafePoint | Target | Lapsed
"""What the coordinator says about safe points."""


@dataclass(slots=True)
class OwnPoints:
    """One rank's safe points, over all its lives: the others count theirs on as well."""

    passed: int = 0
    """Number of the last safe point that was passed, or at which the rank is the target's."""
    _request: int | None = None
    """The request that was answered last, unless it has lapsed or was met."""
    _target: int | None = None
    _due: Due | None = None
    held: bool = False
    """A trigger fired here, and the coordinator has not answered it yet."""

    def on_message(self, message: ToRank) -> SafePoint | None:
        """Handle a message; return the answer to a question, for the link's own thread to send."""
        if isinstance(message, AskSafePoint):  # one request at a time: an older one is over
            self._request, self._target = message.request, None
            self.held = False
            return SafePoint(message.request, self.passed)
        if isinstance(message, Lapsed):
            self.held = False
        if message.request == self._request:
            if isinstance(message, Target):
                self._target, self._due = message.point, message.due
            else:
                self.forget()
        return None

    def forget(self) -> None:
        """Forget the request: it lapsed, or was met, or its coordinator is gone."""
        self._request = self._target = self._due = None

    def try_pass(self, *, waits: bool = False) -> bool:
        """Pass the next safe point, or stop at it if it is the target; False to wait at it.

        Args:
            waits: wait until a target is named, even if nobody has asked.
        """
        if self._target is None and (waits or self.held or self._request is not None):
            return False
        self.passed += 1
        if waits and self._target is not None:
            self.passed = max(self.passed, self._target)
        return True

    def leave(self) -> None:
        """Pass the next safe point without a coordinator: it counts, as it does on the others."""
        self.passed += 1
        self.held = False
        self.forget()

    def arrived(self) -> SafePoint | None:
        """Return what to tell the coordinator if this rank is at the target, else None."""
        if self._request is None or self._target != self.passed:
            return None
        return SafePoint(self._request, self.passed)

    def take_due(self) -> Due | None:
        """Return what to do at the target, and forget the request, which is met."""
        due = self._due
        self.forget()
        return due
